"""Documents of text, and which of them are held out: training and validation are kept apart by document.

Where every document is a file, whole files are held out, as near to the wanted share of the bytes as they come.
Rows are too many to list: each is held out by itself, when a hash of seed and text lies below the share. So the
split needs no totals, does not depend on the order of the rows, and equal texts are on the same side.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from lawa.data.files import File, find, read_through, unchanged
from lawa.data.sources import TextSource
from lawa.errors import LawaError


@dataclass(frozen=True, kw_only=True)
class Document:
    """A text that is tokenized by itself.

    where     how errors name it
    consumed  bytes of its source that were read for it
    row       whether it is one of many in its file or dataset
    file      the number of the file that it is, or is in
    """

    text: str
    where: str
    consumed: int
    row: bool
    file: int = 0

    @cached_property
    def sha256(self) -> str:
        """Hexadecimal digest of the text's bytes."""
        return hashlib.sha256(self.text.encode()).hexdigest()


class Corpus(Protocol):
    """The documents of one source.

    record      what makes two the same, beside their files
    files       what they are read from, sorted by name; [] where that is not on this machine
    bytes       of all that will be read; None when unknown
    provenance  what is worth writing down besides
    """

    record: dict[str, Any]
    files: list[File]

    @property
    def bytes(self) -> int | None: ...

    @property
    def provenance(self) -> dict[str, Any]: ...

    def read_through(self) -> None:
        """Give the files their digests; LawaError for what cannot be text."""

    def documents(self) -> Iterator[Document]:
        """The documents in order. Those without text are left out. LawaError names a row that will not do."""
        ...


class Texts:
    """The documents of text and JSONL files."""

    def __init__(self, source: TextSource) -> None:
        self.source = source
        self.files = find(source.paths)
        self.record: dict[str, Any] = {"text": source.text} if any(file.rows for file in self.files) else {}

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    @property
    def provenance(self) -> dict[str, Any]:
        return {"paths": [str(path) for path in self.source.paths], "sha256": digest(self.files)}

    def read_through(self) -> None:
        self.files = [read_through(file) for file in self.files]
        refuse_twins(file for file in self.files if not file.rows)

    def documents(self) -> Iterator[Document]:
        for number, file in enumerate(self.files):
            if file.rows:
                for text, where, consumed in rows(file, self.source.text):
                    yield Document(text=text, where=where, consumed=consumed, row=True, file=number)
                unchanged(file)
            else:
                yield Document(text=_text(file), where=str(file.path), consumed=file.bytes, row=False, file=number)


def rows(file: File, field: str) -> Iterator[tuple[str, str, int]]:
    """Of every line of a JSONL file its text, how errors name it, and the bytes of the file that were read for it."""
    packed = file.name.endswith(".gz")
    with file.path.open("rb") as raw, gzip.GzipFile(fileobj=raw) if packed else raw as lines:
        before = after = number = 0
        try:
            for number, line in enumerate(lines, 1):
                after = raw.tell() if packed else after + len(line)
                if line.isspace():
                    continue
                where = f"{file.path}, line {number}"
                if text := _field(line, field, where):
                    yield text, where, after - before
                    before = after
        except (EOFError, gzip.BadGzipFile, zlib.error) as bad:
            raise LawaError(
                f"{file.path} is damaged after line {number} ({bad}); fetch it again, or leave it out"
            ) from bad


def checked(text: object, field: str, where: str) -> str:
    """`text` if it is one; `where` names the row in errors."""
    if not isinstance(text, str):
        found = "is missing" if text is None else f"is {type(text).__name__}, not text"
        raise LawaError(f"{where}: the field {field!r} {found}; name the field that has the text, or mend the row")
    try:
        text.encode()
    except UnicodeEncodeError as bad:
        raise LawaError(f"{where}: the text has half a surrogate pair ({bad.reason}); mend or remove the row") from bad
    return text


def held_out(files: Sequence[File], *, fraction: float, seed: int) -> set[str]:
    """The names of the files that are validation: `fraction` of the bytes, as nearly as whole files allow.

    They are taken in the order of SHA-256(seed, name), so another file moves few of the others to the other side.
    Raises LawaError when none is left to train on.
    """
    wanted = fraction * sum(file.bytes for file in files)
    names: set[str] = set()
    taken = 0
    for file in sorted(files, key=lambda file: _key(seed, file.name)):
        if names and taken + file.bytes / 2 > wanted:  # without it we are nearer to the fraction
            break
        names.add(file.name)
        taken += file.bytes
    if len(names) == len(files):
        raise LawaError(
            f"{len(files)} document(s) cannot be split with validation_fraction {fraction}: none is left for "
            "training; give more files (one file is one document), or name the validation files"
        )
    return names


def splitter(corpus: Corpus, *, fraction: float, seed: int) -> Callable[[Document], str]:
    """Which side ("train" or "validation") a document of `corpus` is on."""
    if isinstance(corpus, Texts) and not any(file.rows for file in corpus.files):
        names = held_out(corpus.files, fraction=fraction, seed=seed)
        sides = ["validation" if file.name in names else "train" for file in corpus.files]
        return lambda document: sides[document.file]
    below = fraction * 2**64

    def by_hash(document: Document) -> str:
        return "validation" if int.from_bytes(_key(seed, document.sha256)[:8]) < below else "train"

    return by_hash


def refuse_twins(files: Iterable[File]) -> None:
    """Raise LawaError when two files hold the same text, under any names."""
    first: dict[str, File] = {}
    for file in files:
        twin = first.setdefault(file.sha256, file)
        if twin is not file:
            raise LawaError(
                f"{twin.path} and {file.path} hold the same text, which the split could put on both sides; remove one"
            )


def digest(files: Iterable[File]) -> str:
    """SHA-256 over names and texts (hexadecimal): what `sha256sum NAME… | sha256sum` prints, in this order."""
    lines = "".join(f"{file.sha256}  {file.name}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def _text(file: File) -> str:
    """Every byte of a file's text (line ends are not translated); LawaError when it is not the one that was listed."""
    content = file.path.read_bytes()
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise LawaError(f"{file.path} changed while it was in use; start again once it stays as it is")
    return content.decode("utf-8")


def _field(line: bytes, field: str, where: str) -> str:
    try:
        row = json.loads(line.decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as bad:
        raise LawaError(f"{where} is not JSON ({bad}); mend or remove the line") from bad
    if not isinstance(row, dict):
        raise LawaError(f"{where} is {type(row).__name__}, not a mapping of fields; mend or remove the line")
    return checked(row.get(field), field, where)


def _key(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{name}".encode()).digest()
