"""Room on a disk, taken before it is written to. No torch."""

from __future__ import annotations

import os


def reserve(descriptor: int, nbytes: int) -> None:
    """Make an open file `nbytes` long, with blocks of its own where the system can: OSError where there are too few."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, nbytes)
    else:
        os.truncate(descriptor, nbytes)
