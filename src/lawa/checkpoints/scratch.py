"""Folders beside an output for what has no place of its own in a file while averages are made of it. No torch."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def scratch(output: Path) -> Iterator[Callable[[], Path]]:
    """Within the block, makes new empty folders on the disk of `output`; they are removed when it ends.

    What a killed process left there is removed at the first call; what one that lives works in is not.
    """
    lock: int | None = None
    root: Path | None = None

    def folder() -> Path:
        nonlocal lock, root
        if root is None:
            output.parent.mkdir(parents=True, exist_ok=True)
            _sweep(output)
            root = Path(tempfile.mkdtemp(prefix=_prefix(output), dir=output.parent))
            lock = os.open(root, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX)
        return Path(tempfile.mkdtemp(dir=root))

    try:
        yield folder
    finally:
        if root is not None and lock is not None:
            shutil.rmtree(root, ignore_errors=True)
            os.close(lock)


def _sweep(output: Path) -> None:
    for entry in output.parent.iterdir():
        if not entry.name.startswith(_prefix(output)):
            continue
        held = os.open(entry, os.O_RDONLY)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(entry, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(held)


def _prefix(output: Path) -> str:
    return f".{output.name}.scratch-"
