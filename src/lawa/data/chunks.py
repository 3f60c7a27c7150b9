"""Batches of LLM360's runs, whose text came in chunks: Amber and K2.

A chunk is a JSONL file of `examples` lines, each a sequence of context + 1 ids. Chunks follow one another in an order
of their own. Sequence i of the run, i = (t − 1) · batch + row, is sequence i mod n of chunk order[⌊i/n⌋], where

    n = examples − examples mod batch     where the rest of each chunk is dropped (Amber)
    n = examples                          where a batch may lie across chunks (K2)

and which line that is depends on the run:

Amber  (LLM360/amber-train at 64bc595, main.py and main_utils.py: lines of 2049 ids, batch 56 · 4 · 10 = 2240) seeds
       NumPy's global generator with 11111 + p when a process starts, p being the chunk that it goes on with, and draws
       np.random.permutation(examples) for that chunk and for each one after it. At which chunks processes started was
       not published. So which lines a chunk has is exact, and their order is known only as far as the starts are.
K2     (LLM360/k2-train at 869fbb9, main.py and megatron/data/data_samplers.py, dataloader type "single": lines of 2048
       ids, the last position without a label, so context 2047; batch 2040) reads its chunks end to end, line by line,
       in the order of `k2_order`: all of it is exact.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lawa.data.building import Progress
from lawa.data.given import at_least, positions
from lawa.data.shards import whole_batches
from lawa.data.token_file import open_ids, sample
from lawa.errors import LawaError, UsageError


@dataclass(frozen=True, kw_only=True)
class ChunksSettings:
    """Chunks of a run.

    files          number of a chunk → its JSONL file; chunks that follow one another in `order`
    batch          sequences an update
    context        ids a line, less one: 2048 for Amber, 2047 for K2
    examples       sequences a chunk: 1,706,976 for Amber
    vocab_size     ids are below it
    order          the chunks' numbers in the order in which the run read them; default: 0, 1, 2, …
    drop_tail      sequences of a chunk that fill no batch were left out
    seed           the order within a chunk is a permutation with this seed (Amber: 11111); None: that of the lines
    process_start  the place in `order` at which the process that read these chunks began; default: each chunk was the
                   first of its process
    cache          folder of the converted files; default: beside each file
    """

    files: dict[int, Path]
    batch: int
    context: int
    examples: int
    vocab_size: int
    order: list[int] | None = None
    drop_tail: bool = True
    seed: int | None = None
    process_start: int | None = None
    cache: Path | None = None

    def __post_init__(self) -> None:
        at_least("chunks", 1, batch=self.batch, context=self.context, vocab_size=self.vocab_size)
        at_least("chunks", self.batch, examples=self.examples)
        at_least("chunks", 0, seed=self.seed or 0, process_start=self.process_start or 0)
        if self.order is not None and len(set(self.order)) < len(self.order):
            raise UsageError("batches.chunks.order names a chunk twice")
        if not self.files or min(self.files) < 0:
            raise UsageError("batches.chunks.files must map numbers of chunks, from 0, to files")
        if self.order is not None and (missing := set(self.files).difference(self.order)):
            raise UsageError(f"batches.chunks.files has chunk {min(missing)}, which chunks.order does not name")
        places = self.places
        if places != list(range(places[0], places[-1] + 1)):
            raise UsageError(
                "batches.chunks.files does not have chunks that follow one another: their places in the order are "
                f"{', '.join(map(str, places))}; leave out some, or fetch those between"
            )
        if self.process_start is not None and self.seed is None:
            raise UsageError("batches.chunks.process_start says with which seed lines were permuted; set its seed too")
        if self.process_start is not None and self.process_start > places[0]:
            raise UsageError(
                f"batches.chunks.process_start={self.process_start} comes after the chunk at place {places[0]}; give a "
                "place that does not"
            )

    @property
    def places(self) -> list[int]:
        """The places of `files` in the order, ascending."""
        return sorted(self.files if self.order is None else map(self.order.index, self.files))

    @property
    def sequences(self) -> int:
        """n: the sequences that the run reads of a chunk."""
        return _sequences(self.examples, self.batch, self.drop_tail)

    def chunk(self, place: int) -> int:
        """The number of the chunk at this place."""
        return place if self.order is None else self.order[place]


class Chunks:
    """The batches of some chunks (`batches.Batches`)."""

    def __init__(self, settings: ChunksSettings, progress: Progress | None = None) -> None:
        """Files that are not converted yet are (`token_file.open_ids`), which is told to `progress` file by file.

        Raises LawaError for what is wrong with a file, and when it has another number of lines than `examples`.
        """
        self.settings = settings
        self.context, self.batch = settings.context, settings.batch
        places, n = settings.places, settings.sequences
        self._told = f"chunks {', '.join(str(settings.chunk(place)) for place in places)}"
        self.updates = whole_batches(places[0] * n, (places[-1] + 1) * n, self.batch, self._told)
        self._ids = {place: _open(settings, place, progress) for place in places}
        self._none = self._ids[places[0]][:0]

    def rows(self, t: int, rows: slice | None = None) -> NDArray[np.int64]:
        settings = self.settings
        asked = positions(t, rows, batch=self.batch, updates=self.updates, where=self._told)
        places, within = np.divmod(asked, settings.sequences)
        parts = [self._lines(place, within[places == place]) for place in dict.fromkeys(places.tolist())]
        ids = parts[0] if len(parts) == 1 else np.concatenate([self._none, *parts])
        return ids.astype(np.int64)

    @cached_property
    def digest(self) -> str:
        settings = self.settings
        known = {name: value for name, value in vars(settings).items() if name not in ("files", "order", "cache")}
        hashed = hashlib.sha256(json.dumps({**known, "places": settings.places}, sort_keys=True).encode())
        for ids in self._ids.values():
            hashed.update(f"{ids.dtype.str} {ids.shape}".encode())
            hashed.update(sample(ids.reshape(-1).view(np.uint8)))
        return hashed.hexdigest()

    def describe(self) -> dict[str, Any]:
        settings = self.settings
        return {
            "kind": "chunks",
            "files": {
                str(settings.chunk(place)): {"path": str(settings.files[settings.chunk(place)]), "lines": len(ids)}
                for place, ids in self._ids.items()
            },
            **{name: getattr(settings, name) for name in ("batch", "context", "examples", "drop_tail", "seed")},
            "updates": [self.updates[0], self.updates[-1]],
            "order": {"chunks": "exact", "lines of a chunk": "exact", "within a chunk": self._known()},
        }

    def _lines(self, place: int, within: NDArray[np.int64]) -> NDArray[np.unsignedinteger]:
        """Sequences of the chunk at a place, by their numbers in the order in which the run read them."""
        settings = self.settings
        if settings.seed is None:
            return self._ids[place][within]
        start = place if settings.process_start is None else settings.process_start
        return self._ids[place][permutation(settings.examples, settings.seed, start, place)[within]]

    def _known(self) -> str:
        settings = self.settings
        if settings.seed is None:
            return "exact: the order of the lines"
        start = settings.process_start
        began = "each chunk was the first of its process" if start is None else f"their process began at place {start}"
        return f"known up to restarts: permutations with seed {settings.seed} + the place of the start, as if {began}"


@lru_cache(maxsize=2)
def permutation(examples: int, seed: int, start: int, place: int) -> NDArray[np.int64]:
    """The lines of the chunk at `place` as a process that began at `start` read them: int64 [examples].

    One permutation is drawn for each chunk since then, from NumPy's legacy generator, whose stream never changes.
    """
    generator = np.random.RandomState(seed + start)
    for _ in range(start, place):
        generator.permutation(examples)
    drawn = generator.permutation(examples)
    drawn.flags.writeable = False
    return drawn


def k2_order(n: int = 360) -> list[int]:
    """The numbers of K2's first `n` chunks in the order in which it read them.

    Source: LLM360/k2-train at 869fbb9, main.py, my_train_valid_test_datasets_provider.
    """
    first = [*range(16), *range(32, 38), *range(44, 52)]
    order = first + [chunk for chunk in range(360) if chunk not in first]
    for moved in (160, 185):  # places whose chunks were put off to the end
        order.append(order.pop(moved))
    return order[:n]


def chunks_of(
    updates: range, *, batch: int, examples: int, drop_tail: bool = True, order: Sequence[int] | None = None
) -> list[int]:
    """The numbers of the chunks that these updates read, in the run's order; the settings as in `ChunksSettings`."""
    n = _sequences(examples, batch, drop_tail)
    places = range((updates[0] - 1) * batch // n, (updates[-1] * batch - 1) // n + 1)
    return [place if order is None else order[place] for place in places]


def _sequences(examples: int, batch: int, drop_tail: bool) -> int:
    return examples - examples % batch if drop_tail else examples


def _open(settings: ChunksSettings, place: int, progress: Progress | None) -> NDArray[np.unsignedinteger]:
    file = settings.files[settings.chunk(place)]
    width = settings.context + 1
    ids = open_ids(file, width=width, vocab_size=settings.vocab_size, cache=settings.cache, progress=progress)
    if len(ids) < settings.examples or (len(ids) > settings.examples and not settings.drop_tail):
        raise LawaError(
            f"{file} has {len(ids)} lines, and batches.chunks.examples={settings.examples}; fetch it whole, or set the "
            "number that the run's chunks have"
        )
    return np.asarray(ids)  # indexing a plain array costs less
