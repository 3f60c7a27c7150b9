"""Tensors that transformers 5 calls otherwise in memory than in its files. No torch.

torch DCP, DeepSpeed and torch.save have a model's tensors under the names of its state_dict(); save_pretrained writes
those that its hub checkpoints have had since before transformers 5.
Source: transformers, conversion_mapping.py, where it is one renaming.
"""

from __future__ import annotations

from collections.abc import Iterable

_IN_FILES = {"gpt_neox": {"lm_head.weight": "embed_out.weight"}}


def names_in_files(model_type: str | None, names: Iterable[str]) -> dict[str, str]:
    """{name: the one in transformers' files}; a name that is there already is not given a second time."""
    given = list(names)
    renamed = {own: other for own, other in _IN_FILES.get(model_type or "", {}).items() if other not in given}
    return {name: renamed.get(name, name) for name in given}
