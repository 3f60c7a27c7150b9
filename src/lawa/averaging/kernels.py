"""The compiled inner loop of the mean, where the installation could build it: the same bits in one pass.

Without it (no C compiler at installation) mean.py does the same work by torch operations.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import pairwise

import torch
from torch import Tensor

_PER_THREAD = 1 << 18  # elements below which another thread costs more than it gains


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
    return library


_library = _load()


def serve(snapshots: Sequence[Tensor], dtype: torch.dtype) -> bool:
    """Whether `mean_into` can do it: fp32 sums of contiguous fp32 or bf16 snapshots on the CPU."""
    first = snapshots[0].dtype
    return (
        _library is not None
        and dtype == torch.float32
        and first in (torch.float32, torch.bfloat16)
        and all(theta.dtype == first and theta.device.type == "cpu" and theta.is_contiguous() for theta in snapshots)
    )


def mean_into(a: Tensor, snapshots: Sequence[Tensor], coefficients: Sequence[float] | None) -> None:
    """mean.average_into for snapshots that it can `serve`.

    a  fp32, contiguous, as long as each snapshot, and apart from them in memory
    """
    library = _library
    assert library is not None
    k, n = len(snapshots), a.numel()
    rounded = None if coefficients is None else (ctypes.c_float * k)(*coefficients)
    scale = 1 / k if coefficients is None else 1.0
    bf16 = snapshots[0].dtype == torch.bfloat16

    def part(start: int, stop: int) -> None:
        pointers = (ctypes.c_void_p * k)(*(theta.data_ptr() + start * theta.element_size() for theta in snapshots))
        library.lawa_mean(a.data_ptr() + 4 * start, pointers, rounded, k, scale, stop - start, bf16)

    count = max(1, min(torch.get_num_threads(), n // _PER_THREAD))
    edges = [n * i // count // 16 * 16 for i in range(count)] + [n]  # threads share no cache line
    # Threads of their own for each call: a pool would not survive a fork.
    others = [threading.Thread(target=part, args=edge) for edge in pairwise(edges[1:])]
    for thread in others:
        thread.start()
    part(edges[0], edges[1])
    for thread in others:
        thread.join()
