"""Sequences made of documents in GPT-NeoX's order, by the three index maps that it wrote: those of Pythia's seeds.

Position p of the run reads sample j = shuffle_idx[p]: the tokens of the documents doc_idx[d], doc_idx[d + 1], … end to
end, from token o of the first, (d, o) = sample_idx[j], to token o′ of the last, (d′, o′) = sample_idx[j + 1], which is
included. So that is context + 1 tokens, and samples that follow each other share one. Update t reads the positions
(t − 1) · batch … t · batch − 1. A "document" is a sequence of Megatron's index.

As GPT-NeoX does, the last sample is never read. With one source its blending changes nothing, but asks for 0.5 % more
samples: hence 147,164,160 in the names of the maps of Pythia's seeds, of which 143000 · 1024 are read.

Source: EleutherAI/gpt-neox v1.0 (71df4d5), megatron/data: gpt2_dataset, indexed_dataset, blendable_dataset, data_utils.
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
from lawa.data.shards import Shards, whole_batches, widen
from lawa.errors import LawaError, UsageError


@dataclass(frozen=True, kw_only=True)
class DocumentsSettings:
    """
    tokens       the prefix of Megatron's PREFIX.bin and PREFIX.idx; or
    files        the tokens in several files, in order, and
    index        their index
    doc_idx      the maps that GPT-NeoX wrote, …_doc_idx.npy and so on
    batch        sequences an update
    context      tokens a sequence predicts
    first        the number of the position that shuffle_idx begins with, where it is a part
    vocab_size   ids are below it; they are not checked without it
    """

    doc_idx: Path
    sample_idx: Path
    shuffle_idx: Path
    batch: int
    context: int
    tokens: Path | None = None
    files: list[Path] | None = None
    index: Path | None = None
    first: int = 0
    vocab_size: int | None = None

    def __post_init__(self) -> None:
        if (self.tokens is None) != bool(self.files and self.index) or (self.tokens and (self.files or self.index)):
            raise UsageError("batches.documents needs either tokens (a prefix), or files and index")
        at_least("documents", 1, batch=self.batch, context=self.context)
        at_least("documents", 0, first=self.first)


class Documents:
    """Open tokens and maps, which are read where they are."""

    def __init__(self, settings: DocumentsSettings) -> None:
        """Raises LawaError for files that are missing, not of their kind, or do not belong together."""
        self.settings = settings
        self.batch, self.context = settings.batch, settings.context
        self._documents = _map(settings.doc_idx, 1)
        self._samples = _map(settings.sample_idx, 2)
        self._shuffled = _map(settings.shuffle_idx, 1)
        if settings.tokens:
            files, index = [Path(f"{settings.tokens}.bin")], Path(f"{settings.tokens}.idx")
        else:
            assert settings.files is not None
            assert settings.index is not None
            files, index = settings.files, settings.index
        self._index = open_index(index)
        self._lengths, self._pointers = np.asarray(self._index.lengths), np.asarray(self._index.pointers)
        self._shards = Shards(files, self._index.dtype)
        if self._shards.bytes != self._index.bytes:
            raise LawaError(
                f"{self._shards.told} has {self._shards.bytes} bytes, and {index} speaks of {self._index.bytes}; name "
                "all files in order, and fetch anew those that were cut off"
            )
        # As GPT-NeoX has it, the last sample is not read.
        end = min(settings.first + len(self._shuffled), len(self._samples) - 2)
        self.updates = whole_batches(settings.first, end, self.batch, settings.shuffle_idx.name)

    def rows(self, t: int, rows: slice | None = None) -> NDArray[np.int64]:
        where = self.settings.shuffle_idx.name
        asked = positions(t, rows, batch=self.batch, updates=self.updates, where=where) - self.settings.first
        try:
            offsets, tokens = self._stretches(self._shuffled[asked].astype(np.int64))
        except IndexError as outside:
            raise self._strange(t) from outside
        ids = self._shards.read(offsets, tokens)
        return widen(ids, self.context, self.settings.vocab_size, f"the batch of update {t}")

    @cached_property
    def digest(self) -> str:
        s = self.settings
        hashed = hashlib.sha256(f"documents {s.batch} {s.context} {s.first} {self._index.dtype.str}".encode())
        parts = [Shards([file], np.dtype("<u1")) for file in (s.doc_idx, s.sample_idx, s.shuffle_idx, self._index.path)]
        for part in (*parts, self._shards):
            hashed.update(f"\n{part.bytes} ".encode() + part.sample())
        return hashed.hexdigest()

    def describe(self) -> dict[str, Any]:
        updates, s = self.updates, self.settings
        maps = {"doc_idx": s.doc_idx, "sample_idx": s.sample_idx, "shuffle_idx": s.shuffle_idx}
        return {
            "kind": "documents",
            "files": self._shards.record(),
            "index": str(self._index.path),
            **{name: {"path": str(path), "bytes": path.stat().st_size} for name, path in maps.items()},
            "dtype": self._index.dtype.name,
            "sequences": len(self._shuffled),
            "first": s.first,
            "updates": [updates[0], updates[-1]],
            "known": "the sequences of every update and their order, by the maps of the run",
            "unknown": "",
            "id_0_in_first_batch": bool((self.rows(updates[0]) == 0).any()),
        }

    def _stretches(self, samples: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The stretches of the documents that make up these samples, in order: first bytes, and tokens of each.

        Raises IndexError where the maps do not belong to these tokens, or to this context.
        """
        begin, end = (self._samples[samples + i].astype(np.int64) for i in (0, 1))  # [n, 2]: (d, o)
        parts = end[:, 0] - begin[:, 0] + 1  # documents that a sample has a part of
        if (parts < 1).any():
            raise IndexError
        last = np.cumsum(parts) - 1
        first = last - parts + 1
        place = np.arange(parts.sum()) + np.repeat(begin[:, 0] - first, parts)
        document = self._documents[place]
        start = np.zeros(len(place), dtype=np.int64)
        start[first] = begin[:, 1]
        length = self._lengths[document].astype(np.int64)
        stop = length.copy()
        stop[last] = end[:, 1] + 1
        tokens = stop - start
        if ((tokens < 0) | (stop > length)).any() or (
            len(tokens) and (np.add.reduceat(tokens, first) != self.context + 1).any()
        ):
            raise IndexError
        return self._pointers[document] + start * self._index.dtype.itemsize, tokens

    def _strange(self, t: int) -> LawaError:
        s = self.settings
        return LawaError(
            f"{s.doc_idx.name}, {s.sample_idx.name} and {s.shuffle_idx.name} do not give {self.context + 1} tokens of "
            f"{self._index.path} for every sequence of update {t}; name the maps, tokens and context of one run"
        )


def _map(path: Path, dimensions: int) -> NDArray[np.integer]:
    """One of the maps, memory-mapped. Raises LawaError where it is none."""
    try:
        found = np.lib.format.open_memmap(path, mode="r")  # never unpickles
    except (OSError, ValueError, EOFError) as failed:
        raise LawaError(
            f"{path} cannot be read as an array of NumPy's ({failed}); name it, or fetch it anew"
        ) from failed
    if found.dtype.kind not in "iu" or found.shape[1:] != (2,) * (dimensions - 1) or found.ndim != dimensions:
        shape = "[n, 2]" if dimensions == 2 else "[n]"
        raise LawaError(
            f"{path} has {found.dtype} {list(found.shape)}, not whole numbers {shape}; name the map that is asked for"
        )
    return np.asarray(found)  # a plain array over the map: indexed faster than np.memmap
