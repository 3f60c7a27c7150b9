"""Where snapshots lie: on the model's own device, or on the host in pinned memory; spill.py has those on disk.

A store hands out memory for a snapshot, fills it with the model's tensors as they are now, and takes it
back; freed memory is used again, so that a steady-state capture allocates nothing. What a snapshot is for
(which windows hold it, and for how long) is not a store's business.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lawa.averaging.layout import Group, Layout, Snapshot


class Bytes(NamedTuple):
    """On this rank."""

    device: int = 0
    host: int = 0
    disk: int = 0


class SnapshotStore(Protocol):
    """What the averager asks of a store.

    durable  whether its snapshots outlive the process: then a saved state names them and does not carry them
    """

    durable: bool

    def capture(self, step: int) -> Snapshot:
        """A snapshot of the model's tensors as they are now, at update `step`; it owns its memory."""
        ...

    def empty(self, step: int) -> Snapshot:
        """Memory for the snapshot of update `step`, to be filled from a saved state."""
        ...

    def free(self, snapshot: Snapshot) -> None:
        """Take the snapshot's memory back."""
        ...

    def settle(self) -> None:
        """Return when every snapshot can be read from the host."""
        ...

    def protect(self) -> None:
        """Let no later work on the device change a tensor that is still being copied."""
        ...

    def nbytes(self, snapshots: int) -> Bytes:
        """What that many snapshots take."""
        ...

    def device(self, group: Group) -> torch.device:
        """Where the snapshots of `group` are read, and their average is made."""
        ...

    def flats(self, index: int, snapshots: Sequence[Snapshot]) -> Sequence[Tensor] | Iterator[Tensor]:
        """The flat tensors of the layout's `index`-th group: together, or one by one in memory that is used again."""
        ...


class DeviceStore:
    """Snapshots beside the parameters. A capture is a `_foreach_copy_` and nothing else."""

    durable = False

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._free: list[Snapshot] = []

    def capture(self, step: int) -> Snapshot:
        snapshot = self.empty(step)
        for index, group in enumerate(self.layout):
            snapshot.fill(index, group)
        return snapshot

    def empty(self, step: int) -> Snapshot:
        return self._free.pop() if self._free else Snapshot(self.layout, [group.allocate() for group in self.layout])

    def free(self, snapshot: Snapshot) -> None:
        self._free.append(snapshot)

    def settle(self) -> None:
        """Work on a device is in stream order: nothing to wait for."""

    def protect(self) -> None:
        """Likewise."""

    def nbytes(self, snapshots: int) -> Bytes:
        host = sum(group.nbytes for group in self.layout if group.device.type == "cpu")
        return Bytes(device=(self.layout.nbytes - host) * snapshots, host=host * snapshots)

    def device(self, group: Group) -> torch.device:
        return group.device

    def flats(self, index: int, snapshots: Sequence[Snapshot]) -> Sequence[Tensor]:
        return [snapshot[index] for snapshot in snapshots]


class HostStore:
    """Snapshots in host memory; from a GPU, copied on a side stream while training goes on.

    The side stream waits for the work that produced the weights. Whoever changes the weights next (the
    optimizer's step, a swap, a replacement) must call `protect` first: it makes the compute stream wait
    for the copy, which is a wait on the device and no host sync. Without a caller that promises to
    (`overlap=False`), a capture protects at once, and its copy delays the compute stream.
    """

    durable = False

    def __init__(self, layout: Layout, *, overlap: bool) -> None:
        self.layout = layout
        self.overlap = overlap
        self._free: list[Snapshot] = []
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._copying: dict[torch.device, torch.Event] = {}

    def capture(self, step: int) -> Snapshot:
        snapshot = self.empty(step)
        for index, group in enumerate(self.layout):
            if group.device.type == "cuda":
                self._copy_on_side_stream(snapshot, index, group)
            else:
                snapshot.fill(index, group)
        if not self.overlap:
            self.protect()
        return snapshot

    def _copy_on_side_stream(self, snapshot: Snapshot, index: int, group: Group) -> None:
        if group.device not in self._streams:
            self._streams[group.device] = torch.cuda.Stream(group.device)
        side = self._streams[group.device]
        side.wait_stream(torch.cuda.current_stream(group.device))
        with torch.cuda.stream(side):
            snapshot.fill(index, group, non_blocking=True)
            for tensor in group.current():  # its memory is not handed on while the copy runs
                tensor.record_stream(side)
            self._copying[group.device] = side.record_event()

    def has_free(self) -> bool:
        return bool(self._free)

    def empty(self, step: int) -> Snapshot:
        if self._free:
            # The free slot's last copy is ordered before the next one: both run on the same side stream.
            return self._free.pop()
        cpu = torch.device("cpu")
        flats = [group.allocate(device=cpu, pinned=group.device.type == "cuda") for group in self.layout]
        return Snapshot(self.layout, flats)

    def free(self, snapshot: Snapshot) -> None:
        self._free.append(snapshot)

    def settle(self) -> None:
        for event in self._copying.values():
            event.synchronize()

    def protect(self) -> None:
        for device, event in self._copying.items():
            torch.cuda.current_stream(device).wait_event(event)

    def nbytes(self, snapshots: int) -> Bytes:
        return Bytes(host=sum(map(host_nbytes, self.layout)) * snapshots)

    def device(self, group: Group) -> torch.device:
        return torch.device("cpu")

    def flats(self, index: int, snapshots: Sequence[Snapshot]) -> Sequence[Tensor]:
        return [snapshot[index] for snapshot in snapshots]


def host_nbytes(group: Group) -> int:
    """Of one snapshot of `group` on the host: torch rounds pinned memory up to a power of two."""
    return (
        1 << (group.nbytes - 1).bit_length() if group.device.type in ("cuda", "meta") and group.nbytes else group.nbytes
    )
