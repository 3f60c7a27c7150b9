"""Every average of a model by name, and what each holds: windows over shared snapshots, and running averages."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from lawa.averaging.averages import Average, Window
from lawa.averaging.layout import Layout, Part, Snapshot
from lawa.averaging.running import Running
from lawa.averaging.stores import SnapshotStore
from lawa.averaging.window import Windows


class Collection:
    """The averages, over one layout and one store."""

    def __init__(self, averages: Mapping[str, Average], layout: Layout, store: SnapshotStore) -> None:
        self.averages = averages
        self.layout = layout
        self.store = store
        windows = {name: average for name, average in averages.items() if isinstance(average, Window)}
        self.windows = Windows(windows, layout, store)
        self.running = {
            name: Running(average, layout) for name, average in averages.items() if not isinstance(average, Window)
        }
        self.prepared: dict[int, Snapshot] = {}  # room for a state that is being loaded, by update

    def due(self, t: int) -> bool:
        return any(average.cadence.due(t) for average in self.averages.values())

    def capture(self, t: int, *, skipped: bool) -> None:
        """Capture θ_t for every average that is due at t."""
        self.windows.capture(t, skipped=skipped)
        for running in self.running.values():
            running.capture(t)

    def count(self, name: str) -> int:
        """Snapshots a window holds, or readings a running average has had."""
        return self.running[name].count if name in self.running else len(self.windows.rings[name].held)

    def steps(self, name: str) -> list[int]:
        """The updates whose snapshots a window holds, oldest first; a running average holds none."""
        return [] if name in self.running else self.windows.rings[name].steps

    def skipped(self, name: str) -> list[int]:
        """Those of `steps` whose update a loss scaler skipped: their snapshots equal the ones before."""
        return [] if name in self.running else [held.step for held in self.windows.rings[name].held if held.skipped]

    def average(self, name: str, *, dtype: torch.dtype, moments: bool = False) -> list[Part]:
        """The average of what `name` holds (something); with `moments`, of the optimizer's moments too."""
        if name in self.running:
            return self.running[name].parts()
        return self.windows.average(name, dtype=dtype, moments=moments)

    def clear(self, name: str) -> None:
        """Let `name` start anew."""
        if name in self.running:
            self.running[name].clear()
        else:
            self.windows.clear(name)
