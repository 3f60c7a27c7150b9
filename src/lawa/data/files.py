"""Files of text: found by listing alone, read through once for their digests, and recognised later without reading."""

from __future__ import annotations

import codecs
import dataclasses
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lawa.checkpoints.publish import sha256
from lawa.errors import LawaError

StrPath = str | os.PathLike[str]

TEXT = (".txt", ".jsonl", ".jsonl.gz")  # what is taken from folders
ROWS = (".jsonl", ".jsonl.gz")  # of these a line is a document, of all others the file

_BLOCK = 1 << 20  # bytes read at once


@dataclass(frozen=True, kw_only=True)
class File:
    """A file as it was when it was listed.

    name      path relative to the folder that was given, or the file's name; the same on every machine
    bytes     its size
    mtime_ns  when it was last changed: a file whose size and time are as they were is not read again
    sha256    hexadecimal digest of its bytes; empty until `read_through`
    """

    name: str
    path: Path
    bytes: int
    mtime_ns: int
    sha256: str = ""

    @property
    def rows(self) -> bool:
        """Whether a line is a document, and not the whole file."""
        return self.name.endswith(ROWS)

    def digest(self) -> str:
        return sha256(self.path)

    def record(self) -> dict[str, Any]:
        """What is written down, to recognise the file by."""
        return {"name": self.name, "bytes": self.bytes, "mtime_ns": self.mtime_ns, "sha256": self.sha256}


def find(paths: Sequence[StrPath], suffixes: Sequence[str] = TEXT) -> list[File]:
    """The files at `paths`, sorted by name: files as they are, folders with all files of these suffixes below them.

    Hidden files and folders are left out. Nothing is read. Raises LawaError for a missing path, a folder without
    such a file, and two files with the same name.
    """
    named: dict[str, Path] = {}
    for path in paths:
        for name, file in _below(Path(path), suffixes):
            if name in named:
                raise LawaError(
                    f"two documents are called {name}: {named[name]} and {file}; "
                    "give the folder above both instead, or rename one"
                )
            named[name] = file
    if not named:
        raise LawaError("no text was given; name text files, or folders with *.txt files")
    return [_listed(name, named[name]) for name in sorted(named)]


def read_through(file: File) -> File:
    """A file of text with its digest. Raises LawaError when it is empty, or not UTF-8."""
    if file.bytes == 0:
        raise LawaError(f"{file.path} is empty; remove it or leave it out")
    if file.rows:  # each of its lines is decoded when it is used
        return dataclasses.replace(file, sha256=file.digest())
    decoder = codecs.getincrementaldecoder("utf-8")()
    hashed = hashlib.sha256()
    size = 0
    with file.path.open("rb") as opened:
        while True:
            block = opened.read(_BLOCK)
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as bad:
                raise LawaError(
                    f"{file.path} is not UTF-8 ({bad.reason} near byte {size + bad.start}); convert it or leave it out"
                ) from bad
            if not block:
                return dataclasses.replace(file, sha256=hashed.hexdigest())
            hashed.update(block)
            size += len(block)


def unchanged(file: File) -> File:
    """The file itself; LawaError when it is no longer the one that was listed."""
    now = file.path.stat()
    if (now.st_size, now.st_mtime_ns) != (file.bytes, file.mtime_ns):
        raise LawaError(f"{file.path} changed while it was in use; start again once it stays as it is")
    return file


def compare(there: Iterable[Mapping[str, Any]], here: Iterable[File]) -> tuple[list[str], list[str]]:
    """The names of files (records of them `there`) that only one side has; a changed file is on both lists.

    A file whose size and time of change are those written down is taken as unchanged; others are read.
    """
    written = {record["name"]: record for record in there}
    only_here = []
    for file in here:
        record = written.pop(file.name, None)
        if record is None:
            only_here.append(file.name)
        elif (record["bytes"], record["mtime_ns"]) != (file.bytes, file.mtime_ns) and (
            record["bytes"] != file.bytes or record["sha256"] != file.digest()
        ):
            written[file.name] = record
            only_here.append(file.name)
    return sorted(written), only_here


def _below(path: Path, suffixes: Sequence[str]) -> list[tuple[str, Path]]:
    """(name, file) of a path that was given."""
    kinds = ", ".join(f"*{suffix}" for suffix in suffixes) if any(suffixes) else ""
    if path.is_file():
        return [(path.name, path)]
    if not path.is_dir():
        raise LawaError(f"{path} does not exist; name text files, or folders with *.txt files")
    found = []
    for file in path.rglob("*"):
        name = file.relative_to(path)
        if file.name.endswith(tuple(suffixes)) and file.is_file() and not any(p.startswith(".") for p in name.parts):
            found.append((name.as_posix(), file))
    if not found:
        raise LawaError(f"{path} has no {kinds or 'file'}; name a folder that has some, or the files themselves")
    return found


def _listed(name: str, path: Path) -> File:
    now = path.stat()
    return File(name=name, path=path, bytes=now.st_size, mtime_ns=now.st_mtime_ns)
