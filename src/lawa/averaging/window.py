"""Sliding windows over one stream of snapshots.

One capture at an update serves every window that is due then: the windows share the snapshot, and its
memory goes back to the store when the last of them lets it go.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from lawa.averaging.averages import Window
from lawa.averaging.coefficients import coefficients, is_uniform
from lawa.averaging.layout import Layout, Part, Snapshot
from lawa.averaging.mean import average_into, average_one_by_one
from lawa.averaging.stores import SnapshotStore


@dataclass(eq=False)
class Held:
    """A snapshot of θ_step, and how many windows hold it. `skipped`: a loss scaler skipped that update."""

    step: int
    snapshot: Snapshot
    skipped: bool = False
    windows: int = 0


@dataclass
class Ring:
    """What one window holds, oldest first."""

    window: Window
    held: deque[Held] = field(default_factory=deque)

    @property
    def steps(self) -> list[int]:
        return [held.step for held in self.held]


class Windows:
    """Every window of an averager, over one store."""

    def __init__(self, windows: Mapping[str, Window], layout: Layout, store: SnapshotStore) -> None:
        self.rings = {name: Ring(window) for name, window in windows.items()}
        self.layout = layout
        self.store = store

    def capture(self, t: int, *, skipped: bool = False) -> bool:
        """Capture θ_t once for every window that is due at t; whether any was."""
        due = [ring for ring in self.rings.values() if ring.window.cadence.due(t)]
        if not due:
            return False
        for ring in due:  # room first: the memory of the oldest takes the newest
            while len(ring.held) >= ring.window.size:
                self._let_go(ring.held.popleft())
        self.hold(Held(t, self.store.capture(t), skipped), due)
        return True

    def hold(self, held: Held, rings: Sequence[Ring]) -> None:
        for ring in rings:
            ring.held.append(held)
            held.windows += 1

    def clear(self, name: str) -> None:
        """Empty one window."""
        while self.rings[name].held:
            self._let_go(self.rings[name].held.popleft())

    def snapshots(self) -> list[Held]:
        """Every snapshot that some window holds, oldest first."""
        held = {id(one): one for ring in self.rings.values() for one in ring.held}
        return sorted(held.values(), key=lambda one: one.step)

    def average(self, name: str, *, dtype: torch.dtype, moments: bool = False) -> list[Part]:
        """The average of what window `name` holds now (at least one snapshot), in the captured dtypes.

        It lies where the snapshots lie, in memory of its own. With `moments`, the optimizer's too.
        """
        ring = self.rings[name]
        spec = ring.window.coefficients
        weights = None if is_uniform(spec) else coefficients(spec, len(ring.held))
        self.store.settle()
        parts: list[Part] = []
        for index, group in enumerate(self.layout):
            if group.moments and not moments:
                continue
            flats = self.store.flats(index, [held.snapshot for held in ring.held])
            out = group.allocate(device=self.store.device(group))
            accumulate = torch.promote_types(dtype, group.dtype)
            if isinstance(flats, Sequence):
                average_into(out, flats, weights, dtype=accumulate)
            else:
                average_one_by_one(out, flats, len(ring.held), weights, dtype=accumulate)
            parts.append((group, out))
        return parts

    def _let_go(self, held: Held) -> None:
        held.windows -= 1
        if held.windows == 0:
            self.store.free(held.snapshot)
