"""What is kept of a series of checkpoints. Both rules look only at what is there, so they can be applied again."""

from __future__ import annotations

from pathlib import Path

from lawa.checkpoints.find import step_directories
from lawa.checkpoints.publish import is_published, remove, sweep


def keep_latest(parent: Path, count: int) -> None:
    """Remove all but the latest `count` (≥ 1) checkpoints in `parent`."""
    for path in list(step_directories(parent).values())[:-count]:
        remove(path)


def thin(parent: Path, folder: str) -> None:
    """Remove `folder` from every checkpoint in `parent` but the latest that has it whole, and a kill's leftovers."""
    for path in step_directories(parent).values():
        sweep(path)
    having = [path / folder for path in step_directories(parent).values() if is_published(path / folder)]
    for path in having[:-1]:
        remove(path)
