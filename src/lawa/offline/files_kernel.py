"""The compiled loop from files to files, and the same work by torch operations."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from lawa.checkpoints.catalog import ITEMSIZE, Stored
from lawa.offline.bytes_at import CUT_OFF, TRUNCATED, read_all, write_all

Source = tuple[int, int, str]  # descriptor, offset of the tensor in bytes, dtype

_TYPES = {"float32": 0, "bfloat16": 1, "float16": 2}
_IN_CACHE = 3 << 18  # bytes of all inputs' blocks: they stay in a core's own cache
_MANY = 1 << 16  # elements of a block for several outputs: their many writes cost more than the cache saves
_MOST = 1 << 25  # bytes of all inputs' blocks for several outputs
_HELD = 1 << 26  # bytes of all inputs' blocks that torch works on
_NO_MEMORY = -2


@dataclass(frozen=True)
class Done:
    """
    errno       0, or what failed: the system's number, or one of ours
    at          the source or (counted after them) the target at which it failed
    not_finite  indexes of targets with values that are not finite
    """

    errno: int = 0
    at: int = 0
    not_finite: Sequence[int] = ()

    @property
    def sentence(self) -> str:
        if self.errno == TRUNCATED:
            return CUT_OFF
        return "no memory for its blocks" if self.errno == _NO_MEMORY else os.strerror(self.errno)


def _load() -> ctypes.CDLL | None:
    spec = find_spec("lawa.offline._files")
    if spec is None or spec.origin is None:
        return None
    library = ctypes.CDLL(spec.origin)  # a call through CDLL lets other Python threads run
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    library.lawa_average_files.argtypes = [
        number, pointer, pointer, pointer, number, pointer, pointer, pointer, pointer, pointer,
        ctypes.c_int, number, number, pointer, pointer,
    ]  # fmt: skip
    library.lawa_average_files.restype = number
    return library


_library = _load()


def serve(dtypes: Collection[str], out_dtype: str, accumulate: str) -> bool:
    """Whether `average` can do it."""
    return _library is not None and accumulate == "float32" and {*dtypes, out_dtype} <= _TYPES.keys()


def block_of(sources: Sequence[Source], outputs: int = 1) -> int:
    """Elements of a block: a power of two."""
    bytes_each = sum(ITEMSIZE[dtype] for _, _, dtype in sources)
    block = 1 << min(18, max(12, (_IN_CACHE // bytes_each).bit_length() - 1))
    if outputs == 1:
        return block
    return max(block, 1 << max(12, min(_MANY, _MOST // bytes_each).bit_length() - 1))


def average(
    sources: Sequence[Source],
    targets: Sequence[Source],
    members: Sequence[Sequence[int]],
    coefficients: Sequence[Sequence[float] | None],
    start: int,
    stop: int,
    *,
    accumulate: str = "float32",
) -> Done:
    """Elements start … stop: target j becomes the mean of the sources `members[j]`, oldest first."""
    library = _library
    assert library is not None
    k, n = len(sources), len(targets)
    fds, offsets, types = _columns(sources, start)
    out_fds, out_offsets, _ = _columns(targets, start)
    rows = [(ctypes.c_int64 * len(one))(*one) for one in members]
    weights = [None if one is None else (ctypes.c_float * len(one))(*one) for one in coefficients]
    failed = ctypes.c_int64(0)
    not_finite = (ctypes.c_uint8 * n)()
    errno = library.lawa_average_files(
        k, fds, offsets, types, n, out_fds, out_offsets,
        (ctypes.c_int64 * n)(*map(len, members)),
        (ctypes.c_void_p * n)(*map(ctypes.addressof, rows)),
        (ctypes.c_void_p * n)(*(None if one is None else ctypes.addressof(one) for one in weights)),
        _TYPES[targets[0][2]], stop - start, block_of(sources, n), ctypes.byref(failed), not_finite,
    )  # fmt: skip
    return Done(errno, failed.value, [index for index, bad in enumerate(not_finite) if bad])


def average_by_torch(
    sources: Sequence[Source],
    targets: Sequence[Source],
    members: Sequence[Sequence[int]],
    coefficients: Sequence[Sequence[float] | None],
    start: int,
    stop: int,
    *,
    accumulate: str = "float32",
) -> Done:
    """The same with the core's own operations, for every dtype that is averaged."""
    import torch

    from lawa.averaging.mean import average_into

    block = max(1 << 12, min(1 << 20, _HELD // sum(ITEMSIZE[dtype] for _, _, dtype in sources)))
    bad: set[int] = set()
    sums = getattr(torch, accumulate)
    for at in range(start, stop, block):
        end = min(stop, at + block)
        read: list[Any] = []
        for number, (fd, offset, dtype) in enumerate(sources):
            try:
                piece = read_all(fd, (end - at) * ITEMSIZE[dtype], offset + at * ITEMSIZE[dtype])
            except OSError as failed:
                return Done(failed.errno or 0, number)
            read.append(torch.frombuffer(piece, dtype=getattr(torch, dtype)))
        for number, ((fd, offset, dtype), chosen, c) in enumerate(zip(targets, members, coefficients, strict=True)):
            out = torch.empty(end - at, dtype=getattr(torch, dtype))
            thetas = [read[index] for index in chosen]
            wide = torch.promote_types(sums, max((theta.dtype for theta in thetas), key=lambda one: one.itemsize))
            average_into(out, thetas, c, dtype=torch.float64 if wide == torch.float64 else torch.float32)
            if not bool(torch.isfinite(out).all()):
                bad.add(number)
            try:
                write_all(fd, out.view(torch.uint8).numpy().data, offset + at * ITEMSIZE[dtype])
            except OSError as failed:
                return Done(failed.errno or 0, len(sources) + number)
    return Done(0, 0, sorted(bad))


def is_finite(stored: Stored) -> bool:
    """Whether every element is, read block by block."""
    import torch

    with stored.file.open("rb") as opened:
        opened.seek(stored.offset)
        left = stored.nbytes
        while left:
            piece = opened.read(min(left, 1 << 24))
            if not piece:
                return True
            left -= len(piece)
            if not bool(torch.isfinite(torch.frombuffer(bytearray(piece), dtype=getattr(torch, stored.dtype))).all()):
                return False
    return True


def _columns(rows: Sequence[Source], start: int) -> tuple[Any, Any, Any]:
    """C arrays of the descriptors, of where element `start` lies, and of the types."""
    n = len(rows)
    return (
        (ctypes.c_int * n)(*(fd for fd, _, _ in rows)),
        (ctypes.c_int64 * n)(*(offset + start * ITEMSIZE[dtype] for _, offset, dtype in rows)),
        (ctypes.c_int * n)(*(_TYPES[dtype] for _, _, dtype in rows)),
    )
