"""Tensors that have no place of their own in a file get one: safetensors files in a scratch folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from lawa.checkpoints.catalog import ITEMSIZE, Stored
from lawa.checkpoints.formats.form import Scratch
from lawa.checkpoints.formats.safetensors import read_header
from lawa.errors import LawaError

_BATCH = 1 << 28  # bytes that are held before they are written; a larger tensor is held alone


def spool(source: Path, tensors: Iterable[tuple[str, Tensor]], nbytes: int, scratch: Scratch) -> dict[str, Stored]:
    """Write the tensors of the checkpoint `source`, as they come; their places.

    nbytes  of all of them, or more: so much room must be on the disk
    """
    folder = scratch()
    free = shutil.disk_usage(folder).free
    if free < nbytes:
        raise LawaError(
            f"{folder} has {free / 1e9:.1f} GB of room, and the tensors of {source} need {nbytes / 1e9:.1f} GB there; "
            "choose an --output on a disk with more: what is read is put beside it meanwhile"
        )
    places: dict[str, Stored] = {}
    batch: dict[str, Tensor] = {}
    held = 0
    for name, tensor in tensors:
        check_kind(source, name, tensor)
        batch[name] = _alone(tensor)
        held += tensor.nbytes
        if held >= _BATCH:
            places |= _written(batch, folder / f"{len(places)}.safetensors")
            batch, held = {}, 0
    return places | _written(batch, folder / f"{len(places)}.safetensors")


def once(source: Path, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tied tensors under the first of their names, {name: that name}); all of them are in memory together."""
    for name, tensor in tensors.items():
        check_kind(source, name, tensor)
    first: dict[tuple[object, ...], str] = {}
    names = {
        name: first.setdefault(
            (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.dtype, tensor.shape, tensor.stride()),
            name,
        )
        for name, tensor in tensors.items()
    }
    return {name: tensors[name] for name in first.values()}, names


def dtype_of(tensor: Tensor) -> str:
    """As torch calls it, "bfloat16"."""
    return str(tensor.dtype).removeprefix("torch.")


def check_kind(source: Path, name: str, tensor: Tensor) -> None:
    """Raise for what is no range of elements that catalogs know: complex, quantized, sparse."""
    dense = tensor.layout is torch.strided
    if not dense or dtype_of(tensor) not in ITEMSIZE:
        kind = dtype_of(tensor) if dense else tensor.layout
        raise LawaError(f"{source}: tensor {name!r} is {kind}, which can neither be averaged nor kept")


def _alone(tensor: Tensor) -> Tensor:
    """Contiguous, in memory of its own: safetensors writes no tensor that shares some."""
    tensor = tensor.detach().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _written(tensors: Mapping[str, Tensor], file: Path) -> dict[str, Stored]:
    if not tensors:
        return {}
    save_file(dict(tensors), file)
    places = read_header(file).tensors
    return {name: places[name] for name in tensors}
