"""Files of torch.save: the state dict in them, by torch's own reader and never by a pickle that could run anything.

A file since torch 1.6 is a zip archive with each storage's bytes uncompressed in it, so that a tensor is a byte range.
Loaded onto "meta", torch reads no values and says where each storage lies; what the archive's own directory confirms
is read in place. What lies otherwise (older files, transposed tensors, another byte order) is loaded whole.
"""

from __future__ import annotations

import pickle
import re
import struct
import sys
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lawa.checkpoints.catalog import Stored
from lawa.checkpoints.formats.form import Format, Scratch, Tensors
from lawa.checkpoints.formats.spool import check_kind, dtype_of, once, spool
from lawa.errors import LawaError

_UNDER = ("model", "state_dict", "module", "model_state_dict")  # nanoGPT, Lightning, DeepSpeed, tutorials
_LOCAL_HEADER = 30  # bytes, before the entry's name


def find(file: Path) -> Format:
    places = _in_place(file)
    if places is None:
        return Format("torch", True, partial(_load_whole, file))
    return Format("torch", False, lambda scratch: Tensors(places))


def state_dict(file: Path) -> dict[str, Tensor]:
    """The tensors of `file` by name, whole."""
    return _state(_load(file, "cpu"), file)


def names(file: Path) -> list[str]:
    """Of its tensors, without their values where that is possible."""
    return list(_in_place(file) or state_dict(file))


def _in_place(file: Path) -> dict[str, Stored] | None:
    """Where each tensor lies, or None where one has no range of its own."""
    try:
        stored = _storages(file)
    except Exception:  # an older file, or an archive that torch alone may read
        return None
    if not stored:
        return None
    places = {}
    for name, tensor in _state(_load(file, "meta"), file).items():
        check_kind(file, name, tensor)
        storage = tensor.untyped_storage()
        offset = getattr(storage, "_checkpoint_offset", None)
        if not tensor.is_contiguous() or offset not in stored:
            return None
        start = tensor.storage_offset() * tensor.itemsize
        if start + tensor.nbytes > stored[offset]:
            raise LawaError(f"{file}: tensor {name!r} is longer than what is stored of it; the file is damaged")
        places[name] = Stored(file, offset + start, dtype_of(tensor), tuple(tensor.shape))
    return places


def _storages(file: Path) -> dict[int, int]:
    """{offset in the file: bytes} of what the archive stores as it is.

    Empty for another machine's byte order: loading that onto "meta" ends torch 2.13 with a segmentation fault.
    """
    size = file.stat().st_size
    found = {}
    with zipfile.ZipFile(file) as archive, file.open("rb") as opened:
        entries = archive.infolist()
        order = next((entry for entry in entries if entry.filename.endswith("/byteorder")), None)
        if order and archive.open(order).read(8) != sys.byteorder.encode():
            return {}
        for entry in entries:
            if entry.compress_type == zipfile.ZIP_STORED:
                opened.seek(entry.header_offset)
                name, extra = struct.unpack("<HH", opened.read(_LOCAL_HEADER)[-4:])
                start = entry.header_offset + _LOCAL_HEADER + name + extra
                found[start] = min(entry.file_size, size - start)
    return found


def _load_whole(file: Path, scratch: Scratch) -> Tensors:
    unique, names = once(file, state_dict(file))
    places = spool(file, unique.items(), sum(tensor.nbytes for tensor in unique.values()), scratch)
    return Tensors({name: places[first] for name, first in names.items()})


def _load(file: Path, device: str) -> Any:
    try:
        return torch.load(file, map_location=device, weights_only=True)
    except Exception as bad:  # of a damaged file torch's reader raises whatever its code meets
        if wants := unpickled(bad):
            raise LawaError(
                f"{file} holds {wants}, which only a pickle that may run anything would load, so it is not loaded; "
                "where you trust the file, save its state dict alone"
            ) from None
        raise LawaError(
            f"{file} cannot be loaded by torch ({told(bad)}); it is cut off or damaged: fetch it again"
        ) from None


def unpickled(why: Exception) -> str | None:
    """What a pickle names that torch.load(weights_only=True) refused, if that is why it failed."""
    found = re.search(r"GLOBAL (\S+)", str(why)) if isinstance(why, pickle.UnpicklingError) else None
    return found[1] if found else None


def told(why: Exception) -> str:
    """The telling line of what torch raised, without its advice."""
    said = str(why).rpartition("WeightsUnpickler error:")[2].strip()
    return said.split("\n")[0][:150] or type(why).__name__


def _state(loaded: Any, file: Path) -> dict[str, Tensor]:
    """The state dict among what was saved: bare, or under a name that trainers give it."""
    if isinstance(loaded, Mapping):
        for key in _UNDER:
            if found := _tensors_in(loaded.get(key)):
                return found
        if not any(map(_tensors_in, loaded.values())) and (found := _tensors_in(loaded)):
            return found
    held = f"a table of {', '.join(map(repr, list(loaded)[:5]))}" if isinstance(loaded, Mapping) else "no table"
    expected = f"a state dict, bare or under {', '.join(map(repr, _UNDER))}"
    raise LawaError(f"{file} holds {held}, where {expected}, was expected; save the model's state dict alone")


def _tensors_in(table: Any) -> dict[str, Tensor]:
    if not isinstance(table, Mapping):
        return {}
    return {name: value for name, value in table.items() if isinstance(name, str) and isinstance(value, Tensor)}
