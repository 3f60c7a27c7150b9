"""The files that a checkpoint is read from, and whether they are still what they were. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from lawa.checkpoints.catalog import Catalog, Stamp, Stored
from lawa.checkpoints.publish import is_published
from lawa.errors import LawaError

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".distcp", ".metadata")


def stamps(path: Path) -> dict[Path, Stamp]:
    """Of every file of weights of the checkpoint at `path`, a file or a directory."""
    return {file: stamp(file) for file in ([path] if path.is_file() else sorted(_below(path)))}


def read_from(path: Path, before: dict[Path, Stamp], places: Mapping[str, Stored]) -> dict[Path, Stamp]:
    """Of the files that were read for these `places`: those that they lie in, or, where they were put together
    elsewhere, every one of the checkpoint; as stamped `before`."""
    files = {stored.file for stored in places.values()}
    if all(file.is_relative_to(path) for file in files):
        return {file: before.get(file) or stamp(file) for file in sorted(files)}
    return before


def check_unchanged(catalog: Catalog) -> None:
    """Raise LawaError for the first file that is not what it was when the catalog was made."""
    for file, known in catalog.sources.items():
        if stamp(file) != known:
            raise LawaError(
                f"{file} was changed or removed while {catalog.label} was averaged; average again once nobody writes it"
            )


def stamp(file: Path) -> Stamp:
    try:
        known = file.stat()
    except OSError:
        return None
    return known.st_size, known.st_mtime_ns


def nbytes_of(path: Path) -> int:
    """Of the checkpoint at `path`, a file or a directory with all that is in it."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _below(directory: Path) -> Iterator[Path]:
    for entry in directory.iterdir():
        if entry.is_dir():
            if not is_published(entry):  # one by itself: what a run needs to go on, and removes
                yield from _below(entry)
        elif entry.name.endswith(_WEIGHTS):
            yield entry
