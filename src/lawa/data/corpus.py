"""Text on disk: one file is one document; training and validation are kept apart by document."""

from __future__ import annotations

import codecs
import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lawa.errors import LawaError

StrPath = str | os.PathLike[str]

_BLOCK = 1 << 20  # bytes read at once


@dataclass(frozen=True, kw_only=True)
class Document:
    """A UTF-8 file that has been read through once; its text stays on disk until `text()`.

    name    path relative to the folder that was given, or the file's name; the same on every machine
    bytes   size of the text
    sha256  hexadecimal digest of those bytes
    """

    name: str
    path: Path
    bytes: int
    sha256: str

    def text(self) -> str:
        """The text, every byte of it (line ends are not translated).

        Raises LawaError when the file is no longer the one that was listed.
        """
        content = self.path.read_bytes()
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise LawaError(f"{self.path} changed while it was in use; start again once it stays as it is")
        return content.decode("utf-8")


def documents(paths: StrPath | Sequence[StrPath]) -> list[Document]:
    """The documents at a path or several, sorted by name: files as they are, folders with all `*.txt` below them.

    Hidden files and folders are left out. Every file is read once, for its digest and to see that it is
    UTF-8; the memory needed does not depend on its size. Raises LawaError for a missing path, a folder
    without text, an empty or undecodable file, and two documents with the same name or the same text.
    """
    named: dict[str, Path] = {}
    for path in [paths] if isinstance(paths, str | os.PathLike) else paths:
        for name, file in _files(Path(path)):
            if name in named:
                raise LawaError(
                    f"two documents are called {name}: {named[name]} and {file}; "
                    "give the folder above both instead, or rename one"
                )
            named[name] = file
    if not named:
        raise LawaError("no text was given; name text files, or folders with *.txt files")
    found = [_read_through(name, named[name]) for name in sorted(named)]
    first: dict[str, Document] = {}
    for document in found:
        twin = first.setdefault(document.sha256, document)
        if twin is not document:
            raise LawaError(
                f"{twin.path} and {document.path} hold the same text, which the split could put on both sides; "
                "remove one"
            )
    return found


def split(documents: Sequence[Document], *, fraction: float, seed: int) -> tuple[list[Document], list[Document]]:
    """Training and validation documents, each in the order given.

    `fraction` of the bytes, as nearly as whole documents allow, is validation. The documents are taken in
    the order of SHA-256(seed, name), so another document moves few of the others to the other side.
    Raises LawaError when either side would be empty.
    """
    if not 0 < fraction < 1:
        raise LawaError(f"validation_fraction is {fraction}; it must lie between 0 and 1")
    wanted = fraction * sum(document.bytes for document in documents)
    held_out: set[str] = set()
    taken = 0
    for document in sorted(documents, key=lambda document: _key(seed, document.name)):
        if held_out and taken + document.bytes / 2 > wanted:  # without it we are nearer to the fraction
            break
        held_out.add(document.name)
        taken += document.bytes
    training = [document for document in documents if document.name not in held_out]
    if not training:
        raise LawaError(
            f"{len(documents)} document(s) cannot be split with validation_fraction {fraction}: none is left for "
            "training; give more files (one file is one document), or name the validation files"
        )
    return training, [document for document in documents if document.name in held_out]


def refuse_overlap(training: Iterable[Document], validation: Iterable[Document]) -> None:
    """Raise LawaError when a text is on both sides, whatever its file is called."""
    held_out = {document.sha256: document for document in validation}
    for document in training:
        if twin := held_out.get(document.sha256):
            raise LawaError(
                f"{document.path} is training text, and the same text is validation ({twin.path}); "
                "take it out of one of them"
            )


def digest(documents: Iterable[Document]) -> str:
    """SHA-256 over names and texts (hexadecimal): what `sha256sum NAME… | sha256sum` prints, in this order."""
    lines = "".join(f"{document.sha256}  {document.name}\n" for document in documents)
    return hashlib.sha256(lines.encode()).hexdigest()


def _files(path: Path) -> list[tuple[str, Path]]:
    """(name, file) of a path that was given."""
    if path.is_file():
        return [(path.name, path)]
    if not path.is_dir():
        raise LawaError(f"{path} does not exist; name text files, or folders with *.txt files")
    found = []
    for file in path.rglob("*.txt"):
        name = file.relative_to(path)
        if file.is_file() and not any(part.startswith(".") for part in name.parts):
            found.append((name.as_posix(), file))
    if not found:
        raise LawaError(f"{path} has no *.txt file; name a folder that has some, or the files themselves")
    return found


def _read_through(name: str, path: Path) -> Document:
    decoder = codecs.getincrementaldecoder("utf-8")()
    hashed = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while True:
            block = file.read(_BLOCK)
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as bad:
                raise LawaError(
                    f"{path} is not UTF-8 ({bad.reason} near byte {size + bad.start}); convert it or leave it out"
                ) from bad
            if not block:
                break
            hashed.update(block)
            size += len(block)
    if size == 0:
        raise LawaError(f"{path} is empty; remove it or leave it out")
    return Document(name=name, path=path, bytes=size, sha256=hashed.hexdigest())


def _key(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{name}".encode()).digest()
