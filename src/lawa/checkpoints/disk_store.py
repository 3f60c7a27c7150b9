"""A run's own last checkpoints as the snapshots of its windows: a capture keeps nothing that the disk will have.

A snapshot is in host memory from its capture until its checkpoint is whole, and from then on only there. It is read
back one at a time, so an average needs the memory of the average and of one group's snapshot, whatever the window.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lawa.averaging.layout import Group, Layout, Snapshot, named
from lawa.averaging.stores import Bytes, HostStore
from lawa.checkpoints.find import step_directory
from lawa.checkpoints.publish import is_published
from lawa.errors import LawaError


class Saved(ABC):
    """The checkpoints of a run in the folder `checkpoints`, by update."""

    def __init__(self, checkpoints: Path) -> None:
        self.checkpoints = checkpoints

    def directory(self, step: int) -> Path:
        return step_directory(self.checkpoints, step)

    def has(self, step: int) -> bool:
        """Whether that checkpoint is whole."""
        return is_published(self.directory(step))

    @abstractmethod
    def read(self, step: int, into: Mapping[str, Tensor]) -> None:
        """Fill the tensors, named as the averager names them, from that checkpoint."""


class Reference(Snapshot):
    """A snapshot that lies on disk, or will."""

    def __init__(self, step: int) -> None:
        list.__init__(self)
        self.step = step


class DiskStore:
    """A SnapshotStore over checkpoints. Every capture must fall on one, and retention must keep what windows hold."""

    durable = True

    def __init__(self, layout: Layout, saved: Saved) -> None:
        if any(group.moments for group in layout):
            raise LawaError(
                "checkpoints keep Adam's moments only while training can go on from them, so placement='disk' cannot "
                "average them; choose moments 'keep' or 'reset', or another placement"
            )
        self.layout = layout
        self.saved = saved
        self._host = HostStore(layout, overlap=False)
        self._fresh: dict[int, Snapshot] = {}  # captured, and not known to be on disk

    def capture(self, step: int) -> Snapshot:
        for old in [old for old in self._fresh if self.saved.has(old)]:
            self._host.free(self._fresh.pop(old))
        self._fresh[step] = self._host.capture(step)
        return Reference(step)

    def empty(self, step: int) -> Snapshot:
        if not self.saved.has(step):
            raise LawaError(
                f"the window holds the snapshot of update {step}, but the run has no whole checkpoint of it; "
                "put it back, or start anew"
            )
        return Reference(step)

    def free(self, snapshot: Snapshot) -> None:
        """The checkpoint stays until retention removes it; what never became one is let go."""
        assert isinstance(snapshot, Reference)
        if snapshot.step in self._fresh:
            self._host.free(self._fresh.pop(snapshot.step))

    def settle(self) -> None:
        self._host.settle()

    def protect(self) -> None:
        self._host.protect()

    def nbytes(self, snapshots: int) -> Bytes:
        return self._host.nbytes(min(snapshots, 2))  # the one before may still be on its way to disk

    def device(self, group: Group) -> torch.device:
        return torch.device("cpu")

    def flats(self, index: int, snapshots: Sequence[Snapshot]) -> Iterator[Tensor]:
        group = self.layout[index]
        flat = group.allocate(device=torch.device("cpu"))
        for snapshot in snapshots:
            assert isinstance(snapshot, Reference)
            if snapshot.step in self._fresh:
                yield self._fresh[snapshot.step][index]
            else:
                self.saved.read(snapshot.step, named([(group, flat)]))
                yield flat
