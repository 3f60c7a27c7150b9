"""Averages that read the live weights as they come and hold no snapshots: EMA and running mean."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lawa.averaging.averages import EMA, RunningMean
from lawa.averaging.mean import ema_into, pieces, sum_into
from lawa.averaging.parameters import Group, Layout, Part, read


class Running:
    """The state of an EMA or a running mean: one fp32 tensor per group of weights, on the model's device.

    A bf16 state would never move at β = 0.9999, since each step is smaller than half its last digit.
    """

    def __init__(self, average: EMA | RunningMean, layout: Layout) -> None:
        self.average = average
        self.count = 0  # readings so far
        self.groups: list[Group] = [group for group in layout if not group.moments]
        self.state: list[Tensor] = []
        self._batches: list[tuple[list[Tensor], list[Tensor]]] = []
        self._bound: tuple[int, ...] = ()

    def capture(self, t: int) -> bool:
        """Read θ_t if this average is due at t; whether it was."""
        if not self.average.cadence.due(t):
            return False
        self.allocate()
        if isinstance(self.average, EMA) and self.count == 0:
            read(self.state_parts())
        else:
            for state, readings in self._current():
                if isinstance(self.average, EMA):
                    ema_into(state, readings, self.average.beta)
                else:
                    sum_into(state, readings)
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
        self.state = []
        self._bound = ()

    def allocate(self) -> None:
        if not self.state:
            self.state = [group.allocate(dtype=state_dtype(group)) for group in self.groups]

    def state_parts(self) -> list[Part]:
        """The state itself: an EMA's value, a running mean's sum."""
        return list(zip(self.groups, self.state, strict=True))

    def _current(self) -> Sequence[tuple[list[Tensor], list[Tensor]]]:
        """State and live tensors in cache-sized batches, cut anew only when a live tensor has moved."""
        live = [tensor for group in self.groups for tensor in group.current()]
        where = tuple(tensor.data_ptr() for tensor in live)
        if where != self._bound:
            views = [view for group, flat in zip(self.groups, self.state, strict=True) for view in group.views(flat)]
            self._batches = pieces(list(zip(views, live, strict=True)))
            self._bound = where
        return self._batches


def state_dtype(group: Group) -> torch.dtype:
    """fp32, or fp64 for weights in fp64."""
    return torch.promote_types(torch.float32, group.dtype)


def state_nbytes(group: Group) -> int:
    return group.numel * state_dtype(group).itemsize
