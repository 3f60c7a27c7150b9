"""Matching tensors by name: prefixes that wrappers add are stripped, and nothing is guessed.

A missing, extra or reshaped tensor is an error that names the tensor and where it came from; matching
by position, or skipping what does not fit, freezes or loses an average silently.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from lawa.errors import LawaError

if TYPE_CHECKING:
    from torch import Tensor

_ANYWHERE = ("_orig_mod", "_checkpoint_wrapped_module")  # torch.compile and activation checkpointing, at any depth
_LEADING = "module."  # DistributedDataParallel and friends, around everything


def canonical(name: str) -> str:
    """The tensor's own name, without the prefixes of DDP, torch.compile and activation checkpointing.

    >>> canonical("module._orig_mod.gpt_neox.embed_in.weight")
    'gpt_neox.embed_in.weight'
    """
    name = ".".join(part for part in name.split(".") if part not in _ANYWHERE)
    while name.startswith(_LEADING):
        name = name[len(_LEADING) :]
    return name


def canonical_names(names: Iterable[str], *, where: str) -> dict[str, str]:
    """{given name: canonical name}; two names that become one are an error."""
    result: dict[str, str] = {}
    seen: dict[str, str] = {}
    for name in names:
        own = canonical(name)
        if own in seen:
            raise LawaError(f"{where}: {seen[own]!r} and {name!r} both mean {own!r} once prefixes are stripped")
        seen[own] = name
        result[name] = own
    return result


def check_same(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], *, where: str) -> None:
    """Raise unless `given` has exactly the names and shapes of `expected`; `where` says whose tensors they are."""
    for name, tensor in expected.items():
        if name not in given:
            raise LawaError(f"{where}: tensor {name!r} is missing; is it the same model?")
        if given[name].shape != tensor.shape:
            raise LawaError(
                f"{where}: tensor {name!r} has shape {tuple(given[name].shape)} where the model has "
                f"{tuple(tensor.shape)}; is it the same model?"
            )
    for name in given:
        if name not in expected:
            raise LawaError(f"{where}: tensor {name!r} is not in the model; is it the same model?")
