"""Averages that read the live weights as they come and hold no snapshots: EMA and running mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from lawa.averaging import kernels
from lawa.averaging.averages import EMA, RunningMean
from lawa.averaging.layout import Group, Layout, Part, read
from lawa.averaging.mean import block_size, ema_into, sum_into
from lawa.errors import LawaError


class Running:
    """The state of an EMA or a running mean: one fp32 tensor per group of weights, on the model's device.

    A bf16 state would never move at β = 0.9999, since each step is smaller than half its last digit.
    """

    def __init__(self, average: EMA | RunningMean, layout: Layout) -> None:
        self.average = average
        self.count = 0  # readings so far
        self.groups: list[Group] = [group for group in layout if not group.moments]
        self.state: list[Tensor] = []
        self._work: list[kernels.Table | _Stretch] = []
        self._bound: tuple[int, ...] = ()

    @torch.no_grad()
    def capture(self, t: int) -> bool:
        """Read θ_t if this average is due at t; whether it was."""
        if not self.average.cadence.due(t):
            return False
        self.allocate()
        if isinstance(self.average, EMA) and self.count == 0:
            read(self.state_parts())
        else:
            for work in self._bind():
                if isinstance(self.average, EMA):
                    work.ema(self.average.beta)
                else:
                    work.sum()
        self.count += 1
        return True

    def parts(self) -> list[Part]:
        """The average of the readings so far (at least one), fp32. An EMA's is its state itself: do not change it."""
        if isinstance(self.average, EMA):
            return self.state_parts()
        return [(group, total * (1 / self.count)) for group, total in zip(self.groups, self.state, strict=True)]

    def clear(self) -> None:
        """Start anew: the next reading is the first."""
        self.count = 0
        for flat in self.state:
            flat.zero_()

    def release(self) -> None:
        """Start anew without memory."""
        self.count = 0
        self.state, self._work, self._bound = [], [], ()

    def allocate(self) -> None:
        if not self.state:
            self.state = [group.allocate(dtype=group.state_dtype) for group in self.groups]

    def state_parts(self) -> list[Part]:
        """The state itself: an EMA's value, a running mean's sum."""
        return list(zip(self.groups, self.state, strict=True))

    def _bind(self) -> list[kernels.Table | _Stretch]:
        """What reads the live weights into the state; made anew only when one of them has moved."""
        live = [group.current() for group in self.groups]
        where = tuple(tensor.data_ptr() for tensors in live for tensor in tensors)
        if where != self._bound:
            parts = zip(self.groups, self.state, live, strict=True)
            self._work = [work for group, state, tensors in parts for work in _work(group, state, tensors)]
            self._bound = where
        return self._work


def _work(group: Group, state: Tensor, live: Sequence[Tensor]) -> Sequence[kernels.Table | _Stretch]:
    """One compiled pass where that can be, else torch operations on what stays in cache."""
    for entry, tensor in zip(group.entries, live, strict=True):
        if tensor.shape != entry.shape:
            raise LawaError(
                f"parameter {entry.name!r} has the shape {tuple(tensor.shape)}, and had {tuple(entry.shape)} when the "
                "averager was made; make a new averager"
            )
    if state.device.type == "cpu" and kernels.serve(live, state.dtype):
        return [kernels.Table(state, group.offsets, live)]
    return _cut(group, state, live)


@dataclass(frozen=True)
class _Stretch:
    """A part of a group that stays in cache while it is worked on.

    state    1-D, a view of the group's state
    scratch  1-D, as long: memory that every stretch of the group uses
    reading  1-D, as long: the weights themselves where they lie in one piece, else `scratch`, filled from `live`
    views    of `scratch`, for each tensor of `live`
    gaps     of `scratch`, between the views: where another stretch may have left a nan, which checks would find
    live     the weights, or parts of large ones, that are not in one piece or not of the state's dtype
    """

    state: Tensor
    scratch: Tensor
    reading: Tensor
    views: list[Tensor]
    gaps: list[Tensor]
    live: list[Tensor]

    def ema(self, beta: float) -> None:
        self._fill()
        ema_into(self.state, self.reading, beta, scratch=self.scratch)

    def sum(self) -> None:
        self._fill()
        sum_into(self.state, self.reading)

    def _fill(self) -> None:
        if self.live:
            torch._foreach_copy_(self.views, self.live)
        for gap in self.gaps:
            gap.zero_()


def _cut(group: Group, state: Tensor, live: Sequence[Tensor]) -> list[_Stretch]:
    """Large tensors are cut, small ones put together."""
    block = block_size(group.device)
    stretches: list[list[tuple[int, Tensor]]] = []
    for entry_offset, tensor in zip(group.offsets, live, strict=True):
        parts = tensor.view(-1).split(block) if tensor.is_contiguous() else (tensor,)
        offset = entry_offset
        for part in parts:
            if not stretches or offset + part.numel() - stretches[-1][0][0] > block:
                stretches.append([])
            stretches[-1].append((offset, part))
            offset += part.numel()
    ends = [stretch[-1][0] + stretch[-1][1].numel() for stretch in stretches]
    lengths = [end - stretch[0][0] for stretch, end in zip(stretches, ends, strict=True)]
    scratch = torch.zeros(max(lengths, default=0), dtype=state.dtype, device=state.device)
    made: list[_Stretch] = []
    for stretch, length in zip(stretches, lengths, strict=True):
        first, part = stretch[0]
        whole = len(stretch) == 1 and part.dtype == state.dtype and part.is_contiguous()
        copied = [] if whole else stretch
        made.append(
            _Stretch(
                state=state[first:][:length],
                scratch=scratch[:length],
                reading=part.view(-1) if whole else scratch[:length],
                views=[scratch[at - first :][: part.numel()].view(part.shape) for at, part in copied],
                gaps=[
                    scratch[at + part.numel() - first : following - first]
                    for (at, part), (following, _) in pairwise(copied)
                    if at + part.numel() < following
                ],
                live=[part for _, part in copied],
            )
        )
    return made
