"""Writing a token store: every document is read once for the tokenizer, where one is trained, and once for its ids."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lawa.checkpoints.publish import publish
from lawa.data.corpus import Corpus, Document, splitter
from lawa.data.dataset import Dataset
from lawa.data.encoding import encode_all
from lawa.data.megatron import Megatron
from lawa.data.request import SPLITS, Request
from lawa.data.tokenizer import load, train, vocabulary_size
from lawa.errors import LawaError, require
from lawa.version import __version__

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT = 2

Progress = Callable[[int, int | None], None]  # (bytes done, bytes in all or None: unknown); in the last call both agree


@dataclass(frozen=True)
class _Side:
    """Where the documents of a source go: the splits there are, and the split of one."""

    splits: tuple[str, ...]
    of: Callable[[Document], str]


def write(path: Path, request: Request, workers: int | None, progress: Progress | None) -> None:
    """Publish the store of `request` at `path`."""
    with publish(path) as partial:
        for folder in (*SPLITS, "files"):
            (partial / folder).mkdir()
        sides = _sides(request)
        tokenizer, provenance = _tokenizer(request, sides)
        tokenizer.save_pretrained(partial / "tokenizer")
        vocab_size = vocabulary_size(tokenizer)
        writer = _Writer(partial, tokenizer, "<u2" if vocab_size <= 1 << 16 else "<u4", workers)
        meter = _Meter(request, progress)
        found: dict[str, dict[str, dict[str, Any]]] = {split: {} for split in SPLITS}
        for split in reversed(SPLITS):  # validation first: then training text can be held against it
            for name, given in request.given[split].items():
                if isinstance(given, Megatron):
                    given.check(vocab_size)
                    entries = _refer(given, split, request.fraction, tokenizer.eos_token_id)
                else:
                    entries = writer.write(split, name, given, sides[split, name], meter)
                for side, entry in entries.items():
                    found[side][name] = {"weight": request.weights[side][name], **entry}
        meter.end()
        splits = {split: _total(found[split]) for split in SPLITS}
        info = {
            "format": FORMAT,
            "vocab_size": vocab_size,
            "end_of_text": tokenizer.eos_token_id,
            "digest": _digest(splits),
            "splits": splits,
            "tokenizer": provenance,
            "sources": {
                f"{split}.{name}": given.provenance
                for split, sources in request.given.items()
                for name, given in sources.items()
            },
            "versions": {"lawa": __version__, "python": platform.python_version(), "numpy": np.__version__},
            "request": request.record,
        }
        (partial / "store.json").write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")


def _sides(request: Request) -> dict[tuple[str, str], _Side]:
    """(split it was given for, source) → where its documents go, once all files have been read for their digests."""
    sides: dict[tuple[str, str], _Side] = {}
    for split, sources in request.given.items():
        for name, corpus in sources.items():
            if not isinstance(corpus, Megatron):
                corpus.read_through()
                if request.fraction is None:
                    sides[split, name] = _Side((split,), lambda _, split=split: split)
                else:
                    sides[split, name] = _Side(SPLITS, splitter(corpus, fraction=request.fraction, seed=request.seed))
    return sides


def _tokenizer(request: Request, sides: dict[tuple[str, str], _Side]) -> tuple[PreTrainedTokenizerBase, dict[str, Any]]:
    """The request's tokenizer and where it came from. It is trained on training documents and no others."""
    versions = {name: require(name, extra="train").__version__ for name in ("tokenizers", "transformers")}
    if request.tokenizer is not None:
        return load(request.tokenizer), {"given": str(request.tokenizer), "versions": versions}
    assert request.vocab_size is not None
    texts = (
        document.text
        for name, corpus in request.given["train"].items()
        if not isinstance(corpus, Megatron)
        for document in corpus.documents()
        if sides["train", name].of(document) == "train"
    )
    return train(texts, request.vocab_size), {"trained": request.vocab_size, "versions": versions}


class _Writer:
    """Writes the documents of one source after another, and refuses text that comes on both sides."""

    def __init__(self, folder: Path, tokenizer: PreTrainedTokenizerBase, dtype: str, workers: int | None) -> None:
        self.folder = folder
        self.tokenizer = tokenizer
        self.dtype = dtype
        self.workers = workers
        self._seen: dict[bytes, tuple[str, str]] = {}  # digest of a text → its split, and where it was found

    def write(self, split: str, name: str, corpus: Corpus, side: _Side, meter: _Meter) -> dict[str, dict[str, Any]]:
        """Write the ids of a source that was given for `split`; split → what the store says of the source there."""
        with ExitStack() as opened:
            files = {where: opened.enter_context(_Ids(self.folder / where / name)) for where in side.splits}
            counts = [dict.fromkeys(side.splits, 0) for _ in corpus.files]
            for encoded in encode_all(corpus.documents(), self.tokenizer, self.dtype, self.workers):
                ends = np.cumsum(encoded.lengths)
                for document, end, length in zip(encoded.documents, ends, encoded.lengths, strict=True):
                    where = side.of(document)
                    self._refuse_both_sides(document, where, remember=split == "validation" or not document.row)
                    files[where].add(encoded.ids[end - length : end], len(document.text.encode()))
                    if counts:
                        counts[document.file][where] += 1
                meter.add(sum(document.consumed for document in encoded.documents))
        for where, file in files.items():
            if not file.documents:
                raise LawaError(
                    f"no document of source {name!r} is {where} text; give more documents, or change "
                    "data.validation_fraction or data.seed"
                )
        lines = [{**file.record(), "documents": count} for file, count in zip(corpus.files, counts, strict=True)]
        listing = self.folder / "files" / f"{split}.{name}.jsonl"
        listing.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        return {where: {"dtype": self.dtype, **file.entry()} for where, file in files.items()}

    def _refuse_both_sides(self, document: Document, split: str, *, remember: bool) -> None:
        """Raise LawaError when the text was seen in the other split.

        What is remembered, at some 200 bytes each: validation text that was given, and files that are one document.
        """
        key, mine = bytes.fromhex(document.sha256)[:16], (split, document.where)
        other, where = self._seen.setdefault(key, mine) if remember else self._seen.get(key, mine)
        if other != split:
            here, there = (document.where, where) if split == "train" else (where, document.where)
            raise LawaError(
                f"{here} is training text, and the same text is validation ({there}); take it out of one of them"
            )


class _Ids(AbstractContextManager["_Ids"]):
    """The token file of one source in one split, PLACE.bin, with PLACE.documents.bin beside it."""

    def __init__(self, place: Path) -> None:
        self._ids = place.with_name(f"{place.name}.bin").open("wb")
        self._offsets = place.with_name(f"{place.name}.documents.bin").open("wb")
        self._offsets.write(np.int64(0).astype("<i8").tobytes())
        self._hashed = hashlib.sha256()
        self.documents = self.bytes = self.tokens = 0

    def add(self, ids: NDArray[np.unsignedinteger], size: int) -> None:
        """Append a document of `size` bytes of text."""
        written = ids.tobytes()
        self._ids.write(written)
        self._hashed.update(written)
        self.documents += 1
        self.bytes += size
        self.tokens += len(ids)
        self._offsets.write(np.int64(self.tokens).astype("<i8").tobytes())

    def entry(self) -> dict[str, Any]:
        counts = {"documents": self.documents, "bytes": self.bytes, "tokens": self.tokens}
        return {**counts, "sha256": self._hashed.hexdigest()}

    def __exit__(self, *_: object) -> None:
        self._ids.close()
        self._offsets.close()


class _Meter:
    """Tells `progress` how many bytes of the request have been done."""

    def __init__(self, request: Request, progress: Progress | None) -> None:
        self._progress = progress
        sizes = [
            None if isinstance(given, Dataset) else given.bytes
            for sources in request.given.values()
            for given in sources.values()
            if not isinstance(given, Megatron)
        ]
        self._total = None if None in sizes else sum(size for size in sizes if size)
        self._done = 0

    def add(self, size: int) -> None:
        self._done += size
        if self._progress and self._done != self._total:
            self._progress(self._done, self._total)

    def end(self) -> None:
        """The last call: all is done, whether or not it was known how much that would be."""
        if self._progress and self._done:
            total = self._total or self._done
            self._progress(total, total)


def _refer(given: Megatron, split: str, fraction: float | None, end_of_text: Any) -> dict[str, dict[str, Any]]:
    """Split → what the store says of Megatron's files there: which of their tokens are its own."""
    tokens, digests = len(given.ids), given.digests()
    cut = tokens if fraction is None else given.cut(fraction)
    spans = {split: (0, tokens)} if fraction is None else {"train": (0, cut), "validation": (cut, tokens)}
    offsets = given.offsets()
    entries = {}
    for where, (first, end) in spans.items():
        identity = [digests[".bin"], digests[".idx"], given.ids.dtype.str, str(first), str(end)]
        entries[where] = {
            "dtype": given.ids.dtype.str,
            "documents": int(((offsets >= first) & (offsets < end)).sum()),
            "tokens": end - first,
            "sha256": hashlib.sha256(" ".join(identity).encode()).hexdigest(),
            "megatron": str(given.prefix.absolute()),
            "span": [first, end],
            "end_of_text": given.ends(end_of_text),
            "files": {file.path.suffix: {**file.record(), "sha256": digests[file.path.suffix]} for file in given.files},
        }
    return entries


def _total(sources: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The counts of a split, and of its sources by name; of Megatron's files the bytes of text are not known."""
    counts = {what: sum(entry.get(what, 0) for entry in sources.values()) for what in ("documents", "bytes", "tokens")}
    return {**counts, "sources": {name: sources[name] for name in sorted(sources)}}


def _digest(splits: dict[str, dict[str, Any]]) -> str:
    """SHA-256 over the dtypes and digests of all sources, in order."""
    sources = {split: list(splits[split]["sources"].values()) for split in SPLITS}
    dtypes = dict.fromkeys(entry["dtype"] for side in sources.values() for entry in side)  # one, but for Megatron's
    parts = [",".join(dtypes), *(",".join(entry["sha256"] for entry in sources[split]) for split in SPLITS)]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()
