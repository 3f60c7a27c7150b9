"""What averaging costs, in bytes a rank. No torch: `lawa inspect` reads this, too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lawa.averaging.averages import EMA, Average, Window, snapshots_needed
from lawa.averaging.replacement import Replacement

if TYPE_CHECKING:
    from lawa.averaging.collection import Collection


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Bytes on this rank.

    snapshots  how many are held at most at the same time, shared between windows
    device     snapshots and running averages in the accelerator's memory, for as long as training lasts
    host       the same in host memory (a model on the CPU has all of it here)
    swap       average and backup beside them while `averaged()` lasts, or what a replacement takes if that is more;
               an average lies where its snapshots lie, a backup where the model lies
    spilled    snapshots on disk, for as long as training lasts
    disk       the averager's part of one saved training state
    snapshot   one snapshot (on disk too)
    """

    snapshots: int
    device: int
    host: int
    swap: int
    disk: int
    snapshot: int
    spilled: int = 0

    def __str__(self) -> str:
        return (
            f"{self.snapshots} snapshots: {readable(self.device)} on the device, {readable(self.host)} on the host, "
            f"{f'{readable(self.spilled)} on disk, ' if self.spilled else ''}"
            f"{readable(self.swap)} more during a swap, {readable(self.disk)} on disk a saved state"
        )


def cost_of(collection: Collection, replacement: Replacement | None) -> Cost:
    """Computed from the settings; nothing is allocated."""
    slots = snapshots_needed([ring.window for ring in collection.windows.rings.values()])
    on_device, on_host, on_disk = collection.store.nbytes(slots)
    saved = 0 if collection.store.durable else collection.layout.nbytes * slots
    for running in collection.running.values():
        for group in running.groups:
            saved += group.state_nbytes
            on_host += group.state_nbytes if group.device.type == "cpu" else 0
            on_device += group.state_nbytes if group.device.type != "cpu" else 0
    return Cost(
        snapshots=slots,
        device=on_device,
        host=on_host,
        swap=_swap_bytes(collection, replacement),
        disk=saved,
        snapshot=collection.layout.nbytes,
        spilled=on_disk,
    )


def _swap_bytes(collection: Collection, replacement: Replacement | None) -> int:
    """The larger peak: an average with its backup, or a replacement (no backup, but moments and strength)."""
    groups = [group for group in collection.layout if not group.moments]
    weights = sum(group.nbytes for group in groups)

    def copy(average: Average) -> int:
        if isinstance(average, EMA):
            return 0  # it is its own state
        return weights if isinstance(average, Window) else sum(group.state_nbytes for group in groups)

    most = weights + max(map(copy, collection.averages.values()))
    if collection.store.durable:  # one group of a snapshot at a time is read back
        most += max(group.nbytes for group in collection.layout)
    if replacement is not None:
        if replacement.moments == "average":
            groups = list(collection.layout)
            taken = collection.layout.nbytes
        else:
            taken = copy(collection.averages[replacement.name])
        if replacement.strength != 1:  # see toward: the result, and one group's weights at a time
            taken += sum(group.state_nbytes for group in groups) + max(group.state_nbytes for group in groups)
        most = max(most, taken)
    return most


def readable(nbytes: float) -> str:
    """Bytes for a person, in powers of 1000.

    >>> readable(5_280_000)
    '5.3 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} TB"
