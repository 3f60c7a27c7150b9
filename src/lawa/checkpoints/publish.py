"""Directories that appear whole or not at all.

A directory is written under a hidden name beside its place, every file is brought to disk, the
manifest (sizes and SHA-256 digests) comes last, and one rename publishes it. So a directory without
a manifest does not exist for anybody who reads here, and a kill leaves nothing but a hidden leftover
that the next writer sweeps away.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Any

from lawa.errors import LawaError

MANIFEST = "manifest.json"
_PARTIAL = ".partial"


@contextmanager
def publish(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A directory to write into, which becomes `path` when the block ends without error."""
    partial = begin(path)
    try:
        yield partial
        complete(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def begin(path: str | os.PathLike[str]) -> Path:
    """The empty hidden directory beside `path` that is to become it, for several processes to write into."""
    path = Path(path)
    if path.exists():
        raise LawaError(f"{path} exists already; remove it or choose another place")
    partial = hidden(path)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for folder in [folder for folder in reversed(path.parents) if not folder.exists()]:
            folder.mkdir(exist_ok=True)
            _to_disk(folder.parent)
        partial.mkdir()
    except OSError as failed:
        raise LawaError(f"{path} cannot be made ({failed.strerror}: {failed.filename}); choose another place") from None
    return partial


def complete(
    partial: Path,
    path: str | os.PathLike[str],
    known: Mapping[str, dict[str, Any]] = MappingProxyType({}),
    *,
    sync: bool = True,
    digests: bool = True,
    aside: Path | None = None,
) -> None:
    """Make the written directory `partial` the published one at `path`; the settings as in write_manifest.

    aside  where a directory that is at `path` goes once `partial` is whole, and comes back from where that fails;
           without it, `path` must be free
    """
    path = Path(path)
    write_manifest(partial, known, sync=sync, digests=digests)
    replaced = aside if path.exists() else None
    try:
        if replaced is not None:
            path.rename(replaced)
        partial.rename(path)
    except BaseException:
        if replaced is not None and not path.exists():
            replaced.rename(path)
        raise
    if sync:
        _to_disk(path.parent)


def hidden(path: Path) -> Path:
    """Where a directory is while it is no longer, or not yet, whole."""
    path = path.resolve() if path.name in ("", "..") else path  # the folder that one is in
    return path.with_name(f".{path.name}{_PARTIAL}")


def link(source: Path, target: Path) -> None:
    """The file or folder `source`, which never changes again, at `target` too: hard links where there are any."""
    if source.is_dir():
        target.mkdir(parents=True)
        for entry in source.iterdir():
            link(entry, target / entry.name)
        return
    try:
        target.hardlink_to(source)
    except OSError:  # a file system without them
        shutil.copyfile(source, target)
        _to_disk(target)


def write_manifest(
    directory: Path,
    known: Mapping[str, dict[str, Any]] = MappingProxyType({}),
    *,
    sync: bool = True,
    digests: bool = True,
) -> None:
    """Bring every file of `directory` to disk and list it in its manifest.

    A folder inside that has a manifest of its own is left out, so that it can be removed by itself.

    known    entries of files that another manifest lists and that are on disk already: they are not read again
    sync     leave it to the system when the files come to disk, where False
    digests  list sizes alone, where False: to read large files once more may take as long as it took to write them
    """
    files = {}
    for file in sorted(_files(directory)):
        name = file.relative_to(directory).as_posix()
        if name in known:
            files[name] = known[name]
        else:
            files[name] = to_disk(file, sync=sync, digest=digests)
    manifest = directory / MANIFEST
    manifest.write_text(json.dumps({"files": files}, indent=1) + "\n", encoding="utf-8")
    if not sync:
        return
    _to_disk(manifest)
    above = {folder for file in _files(directory) for folder in file.parents if folder.is_relative_to(directory)}
    for folder in above | {directory}:
        _to_disk(folder)


def to_disk(file: Path, *, sync: bool = True, digest: bool = True) -> dict[str, Any]:
    """Bring a file to disk; its entry in a manifest."""
    if sync:
        _to_disk(file)
    return {"bytes": file.stat().st_size, **({"sha256": sha256(file)} if digest else {})}


def listed(path: Path) -> dict[str, dict[str, Any]]:
    """{file: {"bytes", "sha256"}} of a published directory; without digests where it was published so."""
    manifest = path / MANIFEST
    try:
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        found = {str(name): {"bytes": int(one["bytes"]), **_digest(one)} for name, one in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as bad:
        raise LawaError(f"{manifest} is no manifest ({bad!r}); it is damaged") from None
    for name in found:
        refuse_outside(name, manifest)
    return found


def _digest(entry: Mapping[str, Any]) -> dict[str, str]:
    return {"sha256": str(entry["sha256"])} if "sha256" in entry else {}


def refuse_outside(name: str, index: Path) -> None:
    """Raise for the name of a file that the downloaded `index` lists, and that would lie outside its directory."""
    if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
        raise LawaError(f"{index} lists {name!r}, which is not in its directory; do not use what it belongs to")


def is_published(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a whole directory: one with its manifest."""
    return (Path(path) / MANIFEST).is_file()


def verify(path: str | os.PathLike[str], *, digests: bool = True, part: int = 0, of: int = 1) -> None:
    """Compare a published directory with its manifest; raise LawaError naming the first file that differs.

    part, of  only every `of`-th file from `part` on: several processes share the work
    """
    path = Path(path)
    if not is_published(path):
        raise LawaError(f"{path} has no {MANIFEST}: it was never finished; remove it")
    for name, expected in list(listed(path).items())[part::of]:
        file = path / name
        if not file.is_file():
            raise LawaError(f"{file} is missing, though {path / MANIFEST} lists it")
        if file.stat().st_size != expected["bytes"]:
            raise LawaError(
                f"{file} has {file.stat().st_size} bytes where {expected['bytes']} were written; it is damaged"
            )
        if digests and "sha256" in expected and sha256(file) != expected["sha256"]:
            raise LawaError(f"{file} differs from what was written (SHA-256); it is damaged")


def sweep(parent: str | os.PathLike[str]) -> None:
    """Remove what killed writers left in `parent`."""
    for leftover in Path(parent).glob(f".*{_PARTIAL}"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def remove(path: str | os.PathLike[str]) -> None:
    """Remove a published directory; hidden first, so that nobody ever reads half of it."""
    path = Path(path)
    leaving = hidden(path)
    shutil.rmtree(leaving, ignore_errors=True)
    path.rename(leaving)
    shutil.rmtree(leaving)


def sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _files(directory: Path) -> Iterator[Path]:
    for entry in directory.iterdir():
        if entry.is_dir():
            if not is_published(entry):
                yield from _files(entry)
        elif entry.name != MANIFEST:
            yield entry


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
