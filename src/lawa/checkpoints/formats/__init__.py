"""Checkpoints of every format as tensors in byte ranges of files. Formats are found by looking, never by asking.

    safetensors   one file                                             in place
    torch         one file of torch.save: a state dict, bare or        in place; old files (before torch 1.6) whole
                  under "model", "state_dict", "module", …
    hf            a directory of either, single or in shards           as its files
    neox          GPT-NeoX layer files, model-parallel ranks merged    in place; of several ranks, a layer at a time
    deepspeed     ZeRO 1 to 3: the fp32 masters                        whole
    dcp           torch DCP: our sharded runs, FSDP2 scripts,          tensor by tensor
                  torchtitan, Megatron's torch_dist

What is not in place is written once into safetensors files of a scratch folder, and everything after this knows byte
ranges only. Nothing here imports torch before a file needs it.
"""

from __future__ import annotations

from pathlib import Path

from lawa.averaging.matching import canonical_names
from lawa.checkpoints.carry import home_of
from lawa.checkpoints.catalog import Catalog
from lawa.checkpoints.formats import dcp, deepspeed, huggingface, neox, single
from lawa.checkpoints.formats.form import Format, Scratch
from lawa.checkpoints.sources import read_from, stamps
from lawa.errors import LawaError

__all__ = ["Format", "catalog", "foreseen", "look"]

_DIRECTORIES = (huggingface, neox, deepspeed, dcp)


def look(path: Path) -> Format:
    """The format of the checkpoint at `path`, a file or a directory; LawaError where none is recognised."""
    if path.is_file():
        return single.find(path)
    if not path.is_dir():
        raise LawaError(f"{path} does not exist; name a checkpoint's directory or file")
    for reader in _DIRECTORIES:
        if found := reader.find(path):
            return found
    held = sorted(entry.name for entry in path.iterdir())
    some = ", ".join([*held[:5], *("…" for _ in held[5:6])]) or "nothing"
    raise LawaError(
        f"{path} holds no checkpoint that is known here (model.safetensors, pytorch_model.bin or their index, GPT-NeoX "
        f"layers, DeepSpeed ZeRO, torch DCP); it holds {some}"
    )


def catalog(path: Path, *, label: str | None = None, scratch: Scratch) -> Catalog:
    """Every tensor of the checkpoint at `path` by its canonical name, as a byte range in a file.

    label    what messages call the checkpoint; default: its path
    scratch  makes a new folder on a disk with room, for what has no place of its own in a file; the caller removes it

    Raises LawaError for what is not recognised, damaged, incomplete or would have to run a pickle.
    """
    form = look(path)
    before = stamps(path)
    tensors = form.read(scratch)
    if not tensors.places:
        raise LawaError(f"{path} holds no tensors")
    own = canonical_names(tensors.places, where=str(path))
    return Catalog(
        label=label or str(path),
        directory=home_of(path),
        format=form.name,
        tensors={own[name]: stored for name, stored in tensors.places.items()},
        metadata=tensors.metadata,
        sources=read_from(path, before, tensors.places),
    )


def foreseen(path: Path, *, label: str | None = None) -> Catalog | None:
    """What `catalog` will give, where that is told without loading or writing tensors; its places may be nowhere."""
    form = look(path)
    if form.name == "dcp":
        return dcp.foreseen(path, label=label)
    if form.whole:
        return None
    try:
        return catalog(path, label=label, scratch=_none)
    except _WouldWrite:
        return None


class _WouldWrite(Exception):
    """The tensors have no places of their own."""


def _none() -> Path:
    raise _WouldWrite
