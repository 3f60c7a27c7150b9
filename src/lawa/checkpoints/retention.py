"""What is kept of a series of checkpoints. Both rules look only at what is there, so they can be applied again."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from lawa.checkpoints.find import step_directories
from lawa.checkpoints.publish import is_published, remove, sweep


def keep_latest(parent: Path, count: int, *, needed: Collection[int] = ()) -> None:
    """Remove all but the latest `count` (≥ 1) checkpoints in `parent`, and those of the updates `needed`."""
    for update, path in list(step_directories(parent).items())[:-count]:
        if update not in needed:
            remove(path)


def thin(parent: Path, folder: str, *, keep: int) -> None:
    """Remove `folder` from all but the latest `keep` (≥ 1) checkpoints that have it whole, and a kill's leftovers."""
    for path in step_directories(parent).values():
        sweep(path)
    having = [path / folder for path in step_directories(parent).values() if is_published(path / folder)]
    for path in having[:-keep]:
        remove(path)
