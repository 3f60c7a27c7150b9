"""Snapshots on disk, all of them or those beyond a budget of host memory.

One on disk is a memory map of a file without a name, whose space the system takes back when the process ends, however
it ends. Its blocks are reserved before it is used: a full disk is an error then, and not a signal later.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lawa.averaging.cost import readable
from lawa.averaging.layout import Group, Layout, Snapshot
from lawa.averaging.stores import Bytes, HostStore
from lawa.background import Writer
from lawa.disk import reserve
from lawa.errors import LawaError


class Mapped(Snapshot):
    """A snapshot that lies on disk."""


class SpillStore:
    """The first snapshots in host memory, as many as `host_bytes` holds, and the others in files in `folder`.

    From a GPU one for a file goes through pinned memory, which counts, and a thread writes it while training goes on.
    """

    durable = False

    def __init__(self, layout: Layout, folder: str | os.PathLike[str], *, host_bytes: int, overlap: bool) -> None:
        self.layout = layout
        self.folder = Path(folder)
        self._host = HostStore(layout, overlap=overlap)
        self._staged = _behind_training(layout)
        each = max(1, self._host.nbytes(1).host)
        self.on_host = max(0, host_bytes // each - self._staged)  # snapshots
        self._made = 0  # of those
        self._free: list[Mapped] = []
        self._staging: Snapshot | None = None
        self._writer = Writer()

    def capture(self, step: int) -> Snapshot:
        snapshot = self.empty(step)
        if not isinstance(snapshot, Mapped):
            self._host.free(snapshot)
            return self._host.capture(step)
        if not self._staged:
            for index, group in enumerate(self.layout):
                snapshot.fill(index, group)
            return snapshot
        self._writer.wait()  # the memory is that of the one before
        if self._staging is not None:
            self._host.free(self._staging)
        self._staging = staging = self._host.capture(step)

        def write() -> None:
            self._host.settle()
            for flat, own in zip(snapshot, staging, strict=True):
                flat.copy_(own)

        self._writer.start(write)
        return snapshot

    def empty(self, step: int) -> Snapshot:
        if self._host.has_free():
            return self._host.empty(step)
        if self._made < self.on_host:
            self._made += 1
            return self._host.empty(step)
        return self._free.pop() if self._free else Mapped(self.layout, [self._map(group) for group in self.layout])

    def free(self, snapshot: Snapshot) -> None:
        if isinstance(snapshot, Mapped):
            self._free.append(snapshot)
        else:
            self._host.free(snapshot)

    def settle(self) -> None:
        self._writer.wait()
        self._host.settle()

    def protect(self) -> None:
        self._host.protect()

    def nbytes(self, snapshots: int) -> Bytes:
        on_host = min(snapshots, self.on_host)
        on_disk = snapshots - on_host
        return Bytes(
            host=self._host.nbytes(on_host + (self._staged and on_disk > 0)).host, disk=self.layout.nbytes * on_disk
        )

    def device(self, group: Group) -> torch.device:
        return torch.device("cpu")

    def flats(self, index: int, snapshots: Sequence[Snapshot]) -> Sequence[Tensor]:
        return [snapshot[index] for snapshot in snapshots]

    def _map(self, group: Group) -> Tensor:
        if group.nbytes == 0:
            return torch.zeros(0, dtype=group.dtype)
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.folder) as file:
            try:
                reserve(file.fileno(), group.nbytes)
            except OSError as full:
                raise LawaError(
                    f"{self.folder} has no room for the {readable(group.nbytes)} of a snapshot ({full.strerror}); free "
                    "some, or name another folder"
                ) from None
            return torch.frombuffer(mmap.mmap(file.fileno(), group.nbytes), dtype=group.dtype)


def _behind_training(layout: Layout) -> bool:
    """Whether copies go by way of pinned memory."""
    return any(group.device.type in ("cuda", "meta") for group in layout)
