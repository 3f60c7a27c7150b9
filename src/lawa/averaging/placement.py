"""Which store a placement means."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

from lawa.averaging.cost import readable
from lawa.averaging.layout import Layout
from lawa.averaging.spill import SpillStore
from lawa.averaging.stores import DeviceStore, HostStore, SnapshotStore
from lawa.errors import LawaError

PLACEMENTS = ("device", "host", "disk")

Placement = str | Callable[[Layout], SnapshotStore]


def make_store(
    placement: Placement,
    layout: Layout,
    *,
    snapshots: int,
    overlap: bool,
    folder: str | os.PathLike[str] | None,
    host_bytes: int | None,
    checked: bool = True,
) -> SnapshotStore:
    """The store that `placement` names, or makes of the layout; for so many snapshots at the same time.

    Raises LawaError for settings that do not belong to the placement, and, where `checked`, for a budget that cannot
    be kept and a disk without room.
    """
    if host_bytes is not None and (isinstance(host_bytes, bool) or not isinstance(host_bytes, int) or host_bytes < 0):
        raise LawaError(f"host_bytes={host_bytes!r} must be a whole number of bytes")
    if host_bytes is not None and placement != "host":
        raise LawaError(f"host_bytes is the budget of placement='host'; with {placement!r} leave it out")
    if folder is not None and placement not in ("host", "disk"):
        raise LawaError(f"folder is for snapshots on disk; with placement={placement!r} leave it out")
    if callable(placement):
        return placement(layout)
    if placement == "device":
        return DeviceStore(layout)
    if placement == "host":
        host = HostStore(layout, overlap=overlap)
        needed = host.nbytes(snapshots).host
        if host_bytes is None or needed <= host_bytes:
            return host
        if folder is None and not checked:
            return host
        if folder is None:
            raise LawaError(
                f"{snapshots} snapshots take {readable(needed)} on the host, and host_bytes allows "
                f"{readable(host_bytes)}; name a folder for the others, or take a smaller window"
            )
        spill = SpillStore(layout, folder, host_bytes=host_bytes, overlap=overlap)
        least = spill.nbytes(snapshots).host
        if checked and least > host_bytes:
            raise LawaError(
                f"host_bytes allows {readable(host_bytes)}, less than the {readable(least)} of one snapshot on its way "
                "from the device to the folder"
            )
        return _with_room(spill, snapshots) if checked else spill
    if placement == "disk":
        if folder is None:
            raise LawaError("placement='disk' needs a folder for the snapshots, on a fast local disk")
        store = SpillStore(layout, folder, host_bytes=0, overlap=overlap)
        return _with_room(store, snapshots) if checked else store
    raise LawaError(f"placement={placement!r} must be one of {', '.join(PLACEMENTS)}")


def _with_room(store: SpillStore, snapshots: int) -> SpillStore:
    """Told before training, and not when the window is nearly full."""
    needed = store.nbytes(snapshots).disk
    there = next(folder for folder in (store.folder, *store.folder.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise LawaError(f"snapshots cannot be written in {store.folder}: {there} is no folder that one may write in")
    free = shutil.disk_usage(there).free
    if needed > free:
        raise LawaError(
            f"the snapshots take {readable(needed)} in {store.folder}, where {readable(free)} are free; name another "
            "folder, or take a smaller window"
        )
    return store
