"""safetensors: 8 bytes with the header's length, the header (JSON), and the tensors' bytes. No torch.

The files come from anywhere, so nothing in a header is believed: every range must lie in the file, have the size that
dtype and shape give, and share no byte with another.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lawa.checkpoints.catalog import ITEMSIZE, Stored
from lawa.errors import LawaError

_LONGEST = 100_000_000  # bytes of a header: the format's own limit
_DIMENSIONS = 64  # as many as torch and NumPy know; of more, the product alone could take hours
_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
_NAMES = {own: theirs for theirs, own in _DTYPES.items()}
_METADATA = "__metadata__"


@dataclass(frozen=True)
class Header:
    """tensors by name, in the order of their bytes; metadata as the file has it."""

    tensors: dict[str, Stored]
    metadata: dict[str, str]


def read_header(file: Path) -> Header:
    """What the file says of itself. Raises LawaError for one that is damaged, or lies."""
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = _length(file, opened.read(8), size)
            text = opened.read(length)
    except OSError as unreadable:
        raise LawaError(f"{file} cannot be read ({unreadable.strerror})") from None
    try:
        entries = json.loads(text.decode(), object_pairs_hook=_once)
    except (ValueError, RecursionError) as bad:
        raise LawaError(f"{file} has no safetensors header ({str(bad)[:100]}); it is damaged") from None
    if not isinstance(entries, dict):
        raise LawaError(f"{file} has no safetensors header (it is no JSON object); it is damaged")
    metadata = entries.pop(_METADATA, None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise LawaError(f"{file}: its {_METADATA} is no table of texts; it is damaged")
    start = 8 + length
    tensors = {name: _stored(file, name, entry, start, size) for name, entry in entries.items()}
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)))
    end, before = start, None
    for name, stored in ordered.items():
        if stored.offset < end and stored.nbytes:
            raise LawaError(f"{file}: tensors {before!r} and {name!r} share bytes; its header is damaged")
        if stored.nbytes:
            end, before = stored.offset + stored.nbytes, name
    return Header(ordered, metadata)


def header_bytes(
    tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int]]:
    """The beginning of a file with tensors (name, dtype, shape) in this order, and each one's offset in the file.

    Padded with spaces, so that the first byte of the first tensor lies on 8, as the format's own writer does it.
    """
    entries: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    at = 0
    for name, dtype, shape in tensors:
        end = at + math.prod(shape) * ITEMSIZE[dtype]
        entries[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    begin = struct.pack("<Q", len(text)) + text
    offsets = {name: len(begin) + entry["data_offsets"][0] for name, entry in entries.items() if name != _METADATA}
    return begin, offsets


def _length(file: Path, first: bytes, size: int) -> int:
    if len(first) < 8:
        raise LawaError(f"{file} has {size} bytes, which is no safetensors file; it is damaged")
    (length,) = struct.unpack("<Q", first)
    if length > _LONGEST or 8 + length > size:
        raise LawaError(
            f"{file} says its header has {length} bytes, and the file has {size}; it is cut off, or no safetensors file"
        )
    return length


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name comes twice")
    "".join(found).encode()  # a ValueError for half a surrogate pair, which no other program could print or write
    return found


def _stored(file: Path, name: str, entry: Any, start: int, size: int) -> Stored:
    damaged = LawaError(f"{file}: tensor {name!r} is described as {entry!r:.100}; its header is damaged")
    try:
        dtype, shape, (first, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise damaged from None
    if not isinstance(dtype, str) or not isinstance(shape, list) or len(shape) > _DIMENSIONS:
        raise damaged
    if not all(type(number) is int and 0 <= number < 2**63 for number in (first, end, *shape)):
        raise damaged
    if dtype not in _DTYPES:
        raise LawaError(f"{file}: tensor {name!r} has dtype {dtype[:20]!r}, which this version does not know")
    stored = Stored(file, start + first, _DTYPES[dtype], tuple(shape))
    if end - first != stored.nbytes:
        raise LawaError(
            f"{file}: tensor {name!r} of shape {stored.shape} and dtype {dtype} takes {stored.nbytes} bytes, and its "
            f"range has {end - first}; its header is damaged"
        )
    if start + end > size:
        raise LawaError(
            f"{file} has {size} bytes, and tensor {name!r} would end at {start + end}; it was cut off: fetch it again"
        )
    return stored
