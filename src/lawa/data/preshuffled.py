"""Sequences that lie on disk in the order they were trained on: Pythia's preshuffled files, read where they are.

Sequence i of a run is context + 1 tokens from byte i · (context + 1) · itemsize on, counted over all files; batch s is
the sequences s · batch … (s + 1) · batch − 1. Neighbours share no token.

Of Pythia (batch 1024, context 2048, uint16) `document-00000-of-00020.bin` … `document-00020-of-00020.bin` hold
146,432,000 sequences in 600,078,336,000 bytes; the first file has 30,000,000,000, so sequences lie across files, and no
token does. `document.idx` has 1,757,184,042 bytes, so it lists one document: where they end it does not tell.

Source: EleutherAI/pythia a19eecb, utils/batch_viewer.py, mmap_dataset.py and unshard_memmap.py.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lawa.data.given import at_least, positions
from lawa.data.megatron import open_index
from lawa.data.shards import Shards, dtype_of, whole_batches, widen
from lawa.errors import LawaError, UsageError

_LOOKS = 64  # sequences of an index that are looked at


@dataclass(frozen=True, kw_only=True)
class PreshuffledSettings:
    """
    files       in order, of any sizes; or one with a part of them, fetched by byte range
    batch       sequences an update
    context     tokens a sequence predicts
    dtype       of the tokens in the files
    first       the number of the sequence that the files begin with: batch · N where they were fetched from batch N on
    index       Megatron's index of the whole, to be compared
    vocab_size  ids are below it; they are not checked without it
    """

    files: list[Path]
    batch: int
    context: int
    dtype: str = "uint16"
    first: int = 0
    index: Path | None = None
    vocab_size: int | None = None

    def __post_init__(self) -> None:
        if not self.files:
            raise UsageError("batches.preshuffled.files is empty; name the files in order")
        at_least("preshuffled", 1, batch=self.batch, context=self.context)
        at_least("preshuffled", 0, first=self.first)
        dtype_of(self.dtype, "batches.preshuffled.dtype")


class Preshuffled:
    """Open files of sequences in order."""

    def __init__(self, settings: PreshuffledSettings) -> None:
        """Raises LawaError for files that are missing, and for an index that tells of others."""
        self.settings = settings
        self.batch, self.context = settings.batch, settings.context
        self._shards = Shards(settings.files, dtype_of(settings.dtype, "batches.preshuffled.dtype"))
        self._row = (self.context + 1) * self._shards.dtype.itemsize  # bytes
        self._sequences = self._shards.bytes // self._row
        self.updates = whole_batches(settings.first, settings.first + self._sequences, self.batch, self._shards.told)
        if settings.index:
            self._compare(settings.index)

    def rows(self, t: int, rows: slice | None = None) -> NDArray[np.int64]:
        asked = positions(t, rows, batch=self.batch, updates=self.updates, where=self._shards.told)
        begin, tokens = (asked - self.settings.first) * self._row, np.full(len(asked), self.context + 1)
        if rows is None or rows.step in (None, 1):  # they lie end to end
            begin, tokens = begin[:1], tokens[:1] * len(asked)
        ids = self._shards.read(begin, tokens)
        return widen(ids, self.context, self.settings.vocab_size, f"the batch of update {t}")

    @cached_property
    def digest(self) -> str:
        s = self.settings
        identity = f"preshuffled {s.batch} {s.context} {s.dtype} {s.first} {self._shards.bytes}\n"
        return hashlib.sha256(identity.encode() + self._shards.sample()).hexdigest()

    def describe(self) -> dict[str, Any]:
        updates = self.updates
        return {
            "kind": "preshuffled",
            "files": self._shards.record(),
            "index": self.settings.index and str(self.settings.index),
            "dtype": self.settings.dtype,
            "sequences": self._sequences,
            "first": self.settings.first,
            "updates": [updates[0], updates[-1]],
            "bytes_after_last_sequence": self._shards.bytes % self._row,
            "known": "the sequences of every update and their order, as they lie in the files",
            "unknown": "where documents end",
            "id_0_in_first_batch": bool((self.rows(updates[0]) == 0).any()),
        }

    def _compare(self, path: Path) -> None:
        """Raise LawaError unless the index tells of such sequences, and of as many bytes as the files have.

        One file may be a part of them. Looked at are the header, the size, and some sequences spread over all.
        """
        index, settings = open_index(path), self.settings
        if index.dtype != self._shards.dtype:
            raise LawaError(f"{path} is of {index.dtype.name}, not dtype={settings.dtype}; set it to that")
        looks = np.unique(np.linspace(0, len(index.lengths) - 1, num=_LOOKS, dtype=np.int64))
        wrong = looks[(index.lengths[looks] != self.context + 1) | (index.pointers[looks] != looks * self._row)]
        if len(wrong):
            one = int(wrong[0])
            raise LawaError(
                f"sequence {one} of {path} has {index.lengths[one]} tokens from byte {index.pointers[one]} on, not "
                f"{self.context + 1} from byte {one * self._row} on; correct the context, or name another index"
            )
        begin, whole = settings.first * self._row, len(index.lengths) * self._row
        if begin + self._shards.bytes > whole or (len(settings.files) > 1 and begin + self._shards.bytes < whole):
            raise LawaError(
                f"{self._shards.told} has bytes {begin} … {begin + self._shards.bytes}, and {path} speaks of {whole}; "
                "name all files in order and fetch anew those that were cut off, or correct `first`"
            )
