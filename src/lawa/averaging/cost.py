"""What averaging costs, in bytes a rank."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Bytes on this rank.

    snapshots  how many are held at most at the same time, shared between windows
    device     snapshots and running averages in the accelerator's memory, for as long as training lasts
    host       the same in host memory (a model on the CPU has all of it here)
    swap       average and backup beside them while `averaged()` lasts, or what a replacement takes if that is more;
               an average lies where its snapshots lie, a backup where the model lies
    disk       the averager's part of one saved training state
    """

    snapshots: int
    device: int
    host: int
    swap: int
    disk: int

    def __str__(self) -> str:
        return (
            f"{self.snapshots} snapshots: {readable(self.device)} on the device, {readable(self.host)} on the host, "
            f"{readable(self.swap)} more during a swap, {readable(self.disk)} on disk a saved state"
        )


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
