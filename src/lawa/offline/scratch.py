"""Folders beside an output for what has no place of its own in a file while averages are made of it. No torch."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lawa.checkpoints.catalog import Catalog
from lawa.checkpoints.formats import Format
from lawa.errors import LawaError


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


def check_room(output: Path, catalogs: Sequence[Catalog], forms: Sequence[Format | None]) -> None:
    """Raise where the inputs that are still to be read will not find room beside `output`.

    catalogs  of the first of `forms`; where the last of them was put together there, those of its format that follow
              will be, too, and are taken to be as large
    """
    last, kinds = catalogs[-1], [form and (form.name, form.whole) for form in forms]
    if not any(_is_scratch(file, output) for file in last.files):
        return
    left = kinds[len(catalogs) :].count(kinds[len(catalogs) - 1])
    free = shutil.disk_usage(output.parent).free
    if left * last.nbytes > free:
        raise LawaError(
            f"{output.parent} has {free / 1e9:.1f} GB of room, and the tensors of {left} more inputs of format "
            f"{last.format} need {left * last.nbytes / 1e9:.1f} GB there; choose an --output on a disk with more: what "
            "is read is put beside it meanwhile"
        )


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


def _is_scratch(file: Path, output: Path) -> bool:
    return any(folder.name.startswith(_prefix(output)) for folder in file.parents if folder.parent == output.parent)


def _prefix(output: Path) -> str:
    return f".{output.name}.scratch-"
