"""The bits of an average.

    a ← 0;  a ← a + θ_i, oldest first, in fp32 (fp64 on request);
    uniform:   a ← a · float32(1/k), once, at the end
    weighted:  p = round(c_i · θ_i);  a ← a + p

Every step is one IEEE operation on each element, rounded once: no fma, lerp, add(alpha=) or div,
which give other bits on other devices and vector widths. So the same snapshots give the same bits on
any device, at any block size, thread count or shard. The result is rounded once to the output's dtype.

The work goes in blocks, so that the accumulator stays in cache and memory sees each snapshot once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lawa.averaging import kernels

# Elements a block: the accumulator stays in a processor's shared cache, and the cost of starting an
# operation on every thread stays small beside its work (measured in benchmarks/average.py).
_BLOCK = {"cpu": 1 << 21}
_BLOCK_ELSEWHERE = 1 << 22


def block_size(device: torch.device) -> int:
    """Elements a block on `device`."""
    return _BLOCK.get(device.type, _BLOCK_ELSEWHERE)


@torch.no_grad()
def average_into(
    out: Tensor,
    snapshots: Sequence[Tensor],
    coefficients: Sequence[float] | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    block: int | None = None,
) -> None:
    """Write Σ c_i θ_i to `out`.

    out           1-D, any floating dtype; rounded to it once (fp64 to a 16-bit dtype by way of fp32, as torch does)
    snapshots     θ_i, oldest first: 1-D, as many elements as out, floating, all on one device
    coefficients  c_i, oldest first; None is the uniform mean, whose bits differ from a list of 1/k
    dtype         of the accumulation: torch.float32 or torch.float64
    block         elements a block; it changes the speed, never the bits
    """
    device = snapshots[0].device
    in_place = out.dtype == dtype and out.device == device and out.is_contiguous()
    compiled = kernels.serve(snapshots, dtype)
    if compiled and in_place:
        kernels.mean_into(out, snapshots, coefficients)
        return
    block = block or block_size(device) * (4 if compiled else 1)  # its threads start anew for each block
    size = min(block, out.numel())
    own = None if in_place else torch.empty(size, dtype=dtype, device=device)
    scratch = torch.empty(0 if compiled else size, dtype=dtype, device=device)
    for start in range(0, out.numel(), block):
        target = out[start : start + block]
        a = target if own is None else own[: target.numel()]
        thetas = [snapshot[start : start + block] for snapshot in snapshots]
        if compiled:
            kernels.mean_into(a, thetas, coefficients)
        else:
            _block_into(a, thetas, coefficients, scratch[: target.numel()])
        if own is not None:
            target.copy_(a)


@torch.no_grad()
def average_one_by_one(
    out: Tensor,
    snapshots: Iterable[Tensor],
    count: int,
    coefficients: Sequence[float] | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    block: int | None = None,
) -> None:
    """`average_into` with the same bits, for snapshots that are not in memory together: one is asked for at a time.

    count  k, how many `snapshots` gives; each is read once, and may be overwritten by the next
    """
    in_place = out.dtype == dtype and out.is_contiguous()
    a = out if in_place else torch.empty(out.shape, dtype=dtype, device=out.device)
    block = block or block_size(out.device)
    scratch = torch.empty(min(block, out.numel()), dtype=dtype, device=out.device)
    for i, snapshot in enumerate(snapshots):
        for start in range(0, out.numel(), block):
            part = a[start : start + block]
            coefficient = None if coefficients is None else coefficients[i]
            _add(part, snapshot[start : start + block], coefficient, scratch[: part.numel()], first=i == 0)
    if coefficients is None:
        a.mul_(1 / count)
    if not in_place:
        out.copy_(a)


def _block_into(a: Tensor, thetas: Sequence[Tensor], coefficients: Sequence[float] | None, p: Tensor) -> None:
    """The formula, operation by operation; `p` is scratch memory like `a`."""
    for i, theta in enumerate(thetas):
        _add(a, theta, None if coefficients is None else coefficients[i], p, first=i == 0)
    if coefficients is None:
        a.mul_(1 / len(thetas))


def _add(a: Tensor, theta: Tensor, coefficient: float | None, p: Tensor, *, first: bool) -> None:
    """a ← a + θ, or a ← a + round(c · θ); a is 0 before the first."""
    if coefficient is not None:
        theta = torch.mul(theta if theta.dtype == a.dtype else p.copy_(theta), coefficient, out=p)
    elif theta.dtype != a.dtype:
        theta = p.copy_(theta)
    if first:
        torch.add(theta, 0.0, out=a)  # 0 + θ_0: of −0.0 it makes +0.0, as the formula does
    else:
        a.add_(theta)


def sum_into(total: Tensor, reading: Tensor) -> None:
    """a ← a + θ. Two tensors of one shape and dtype."""
    total.add_(reading)


def ema_into(ema: Tensor, reading: Tensor, beta: float, *, scratch: Tensor | None = None) -> None:
    """e ← e + (1 − β)(θ − e), each operation rounded once. All of one shape and dtype.

    Overwrites `scratch`, or without one `reading`.

    In this form a weight that does not move leaves its average where it is, to the bit.
    """
    difference = torch.sub(reading, ema, out=reading if scratch is None else scratch).mul_(1 - beta)
    ema.add_(difference)
