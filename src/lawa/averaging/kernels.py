"""The compiled inner loops of _mean.c, where the installation could build them: the same bits in one pass.

Without them (no C compiler at installation) mean.py and running.py do the same work by torch operations.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import pairwise

import torch
from torch import Tensor

_PER_THREAD = 1 << 21  # elements read or written below which another thread costs more than it gains


def _load() -> ctypes.CDLL | None:
    spec = find_spec("lawa.averaging._mean")
    if spec is None or spec.origin is None:
        return None
    library = ctypes.CDLL(spec.origin)  # a call through CDLL lets other Python threads run
    library.lawa_mean.argtypes = [
        ctypes.c_void_p,
        ctypes.POINTER(ctypes.c_void_p),
        ctypes.POINTER(ctypes.c_float),
        ctypes.c_int64,
        ctypes.c_float,
        ctypes.c_int64,
        ctypes.c_int,
    ]
    library.lawa_mean.restype = None
    if not hasattr(library, "lawa_copy"):
        return None  # built from an older _mean.c
    integers = ctypes.POINTER(ctypes.c_int64)
    library.lawa_copy.argtypes = [ctypes.c_void_p, *[integers] * 3, *[ctypes.c_int64] * 3]
    library.lawa_copy.restype = None
    library.lawa_running.argtypes = [
        ctypes.c_void_p,
        *[integers] * 3,
        ctypes.c_int64,
        ctypes.POINTER(ctypes.c_float),
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int,
    ]
    library.lawa_running.restype = None
    return library


_LARGE = 1 << 25  # bytes of a copy from which on it does not fit into the caches, and gains by going around them

_library = _load()


def serve(readings: Sequence[Tensor], dtype: torch.dtype) -> bool:
    """Whether the loops can do it: fp32 sums of contiguous fp32 or bf16 tensors on the CPU."""
    first = readings[0].dtype
    return (
        _library is not None
        and dtype == torch.float32
        and first in (torch.float32, torch.bfloat16)
        and all(theta.dtype == first and theta.device.type == "cpu" and theta.is_contiguous() for theta in readings)
    )


def mean_into(a: Tensor, snapshots: Sequence[Tensor], coefficients: Sequence[float] | None) -> None:
    """mean.average_into for snapshots that it can `serve`.

    a  fp32, contiguous, as long as each snapshot, and apart from them in memory
    """
    library = _library
    assert library is not None
    k = len(snapshots)
    rounded = None if coefficients is None else (ctypes.c_float * k)(*coefficients)
    scale = 1 / k if coefficients is None else 1.0
    bf16 = snapshots[0].dtype == torch.bfloat16

    def part(start: int, stop: int) -> None:
        pointers = (ctypes.c_void_p * k)(*(theta.data_ptr() + start * theta.element_size() for theta in snapshots))
        library.lawa_mean(a.data_ptr() + 4 * start, pointers, rounded, k, scale, stop - start, bf16)

    _on_threads(part, a.numel(), moves=k + 1)


def copies(tensors: Sequence[Tensor], flat: Tensor) -> bool:
    """Whether `copy_into` can do it, and gains by it."""
    return (
        _library is not None
        and flat.device.type == "cpu"
        and flat.nbytes >= _LARGE
        and all(one.dtype == flat.dtype and one.device.type == "cpu" and one.is_contiguous() for one in tensors)
    )


def copy_into(flat: Tensor, offsets: Sequence[int], tensors: Sequence[Tensor]) -> None:
    """Copy each tensor to its offset (in elements) in `flat`, 1-D and contiguous, of the same dtype."""
    library = _library
    assert library is not None
    size, array = flat.element_size(), ctypes.c_int64 * len(tensors)
    pointers = array(*(one.data_ptr() for one in tensors))
    starts = array(*(offset * size for offset in offsets))
    lengths = array(*(one.nbytes for one in tensors))

    def part(start: int, stop: int) -> None:
        library.lawa_copy(flat.data_ptr(), pointers, starts, lengths, len(tensors), start * size, stop * size)

    _on_threads(part, flat.numel(), moves=2)


class Table:
    """A running average's state, and where in it each of the live weights belongs: one call for all of them.

    state     fp32, 1-D, contiguous
    offsets   of each reading in the state
    readings  that the loops can `serve`; the weights themselves, read anew at each call
    """

    def __init__(self, state: Tensor, offsets: Sequence[int], readings: Sequence[Tensor]) -> None:
        array = ctypes.c_int64 * len(readings)
        self._state = state
        self._readings = readings  # while the table lives, their memory is nobody else's
        self._pointers = array(*(theta.data_ptr() for theta in readings))
        self._offsets = array(*offsets)
        self._lengths = array(*(theta.numel() for theta in readings))

    def ema(self, beta: float) -> None:
        """mean.ema_into for every reading."""
        self._run(ctypes.c_float(1 - beta))

    def sum(self) -> None:
        """mean.sum_into for every reading."""
        self._run(None)

    def _run(self, share: ctypes.c_float | None) -> None:
        library = _library
        assert library is not None
        state, count = self._state.data_ptr(), len(self._readings)
        bf16 = self._readings[0].dtype == torch.bfloat16

        def part(start: int, stop: int) -> None:
            library.lawa_running(
                state, self._pointers, self._offsets, self._lengths, count, share, start, stop, bf16
            )  # fmt: skip

        _on_threads(part, self._state.numel(), moves=3)


def _on_threads(part: Callable[[int, int], None], n: int, *, moves: int) -> None:
    """part(start, stop) over all of n elements, each of which it reads or writes `moves` times."""
    count = max(1, min(torch.get_num_threads(), n * moves // _PER_THREAD))
    edges = [n * i // count // 16 * 16 for i in range(count)] + [n]  # threads share no cache line
    # Threads of their own for each call: a pool would not survive a fork.
    others = [threading.Thread(target=part, args=edge) for edge in pairwise(edges[1:])]
    for thread in others:
        thread.start()
    part(edges[0], edges[1])
    for thread in others:
        thread.join()
