"""A JSONL file with token ids as an array in a file: converted once, in bounded memory, gone on with after a kill.

PLACE/NAME.ids        little-endian uint16 (vocabularies up to 65,536) or uint32 [lines, width]
PLACE/NAME.ids.json   format, dtype, width; source: its bytes and a digest of a sample of them; done: how many of them
                      are converted; lines, and the largest id

The second file is written anew after each stretch, when the ids that it speaks of are on disk. A conversion that was
killed goes on from there; one whose `done` is the source's size is whole, and the source is not needed any more.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from lawa.data.building import Progress
from lawa.data.token_lines import Stretch, dtype, read, read_apart
from lawa.errors import LawaError
from lawa.records import write_json

FORMAT = 1

STRETCH = 128 << 20  # bytes of JSONL that are read at once, and at most lost by a kill
_SAMPLES, _SAMPLE = 64, 1 << 14  # parts of a file that stand for it, and bytes of each: 1 MiB in all

Piece = TypeVar("Piece")
Result = TypeVar("Result")


def open_ids(
    source: Path,
    *,
    width: int,
    vocab_size: int,
    cache: Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> NDArray[np.unsignedinteger]:
    """The ids of a JSONL file as a read-only memory map [lines, width]; the file is converted first if it must be.

    cache     folder of the converted file; default: the source's
    workers   processes that read at once; default: one a core, up to 8
    progress  called as the source's bytes are done

    Of several processes that ask at once, one converts and the others wait. A source with other bytes than those
    converted is converted anew. Raises LawaError, with the line's number, for a line that is no JSON, has another
    number of ids than `width`, or an id outside the vocabulary; for a missing or empty source; where the place has
    no room or cannot be written.
    """
    place = (cache or source.parent) / f"{source.name}.ids"
    kept = _Record(place, source, width, vocab_size)
    if not kept.whole:
        if not source.is_file():
            raise LawaError(f"{source} does not exist; fetch it, or correct its name")
        try:
            with _alone(place):
                kept = _Record(place, source, width, vocab_size)
                if not kept.whole:
                    _convert(kept, workers or min(8, len(os.sched_getaffinity(0))), progress)
        except OSError as failed:
            raise LawaError(
                f"{place} cannot be written ({failed.strerror}); make room or name another cache, then start again: "
                "it goes on where it was"
            ) from failed
    if kept.most >= vocab_size:
        raise LawaError(
            f"{source} holds the id {kept.most}, and the vocabulary ends at {vocab_size - 1}; correct the vocabulary's "
            "size, or fetch the file of this run"
        )
    return np.memmap(place, dtype=kept.dtype, mode="r", shape=(kept.lines, width))


def sample(data: NDArray[np.uint8]) -> bytes:
    """SHA-256 of parts from all over some bytes, 1 MiB at most: of all in shorter ones."""
    size = len(data)
    if size <= _SAMPLES * _SAMPLE:
        return hashlib.sha256(data.tobytes()).digest()
    hashed = hashlib.sha256()
    for number in range(_SAMPLES):
        start = number * (size - _SAMPLE) // (_SAMPLES - 1)
        hashed.update(data[start : start + _SAMPLE].tobytes())
    return hashed.digest()


class _Record:
    """What is converted of a source, as PLACE/NAME.ids.json has it; nothing where that speaks of another source."""

    def __init__(self, place: Path, source: Path, width: int, vocab_size: int) -> None:
        self.place, self.source, self.width, self.vocab_size = place, source, width, vocab_size
        self.file = place.with_name(f"{place.name}.json")
        self.dtype = dtype(vocab_size)
        self.done = self.lines = 0
        self.most = -1
        found = _json(self.file)
        there = source.is_file()
        self._fixed: dict[str, Any] = {
            "format": FORMAT,
            "dtype": self.dtype,
            "width": width,
            "source": _identity(source) if there else found.get("source"),
        }
        self.whole = False
        if found and all(found.get(name) == value for name, value in self._fixed.items()) and self._covers(found):
            self.done, self.lines, self.most = found["done"], found["lines"], found["most"]
            self.whole = self.done == self._fixed["source"]["bytes"]

    @property
    def bytes(self) -> int:
        """Of the ids."""
        return self.lines * self.width * np.dtype(self.dtype).itemsize

    def add(self, stop: int, ids: NDArray[np.unsignedinteger]) -> None:
        """Note that the ids of the source's bytes up to `stop` are on disk."""
        self.done, self.lines = stop, self.lines + len(ids)
        self.most = max(self.most, int(ids.max())) if ids.size else self.most
        write_json(self.file, {**self._fixed, "done": self.done, "lines": self.lines, "most": self.most})
        self.whole = self.done == self._fixed["source"]["bytes"]

    def _covers(self, found: dict[str, Any]) -> bool:
        """Whether the ids that are spoken of are there."""
        size = found["lines"] * self.width * np.dtype(self.dtype).itemsize
        return self.place.is_file() and self.place.stat().st_size >= size


def _convert(kept: _Record, workers: int, progress: Progress | None) -> None:
    """Write what is missing of the ids, stretch by stretch."""
    source, size = kept.source, kept.source.stat().st_size
    if not size:
        raise LawaError(f"{source} is empty; fetch it anew")
    if not kept.done:  # a reader may still have another source's ids mapped
        kept.file.unlink(missing_ok=True)
        kept.place.unlink(missing_ok=True)
    stretches = [(start, min(start + STRETCH, size)) for start in range(kept.done, size, STRETCH)]
    alone = min(workers, len(stretches)) == 1

    def ids_of(stretch: tuple[int, int]) -> Stretch:
        return (read if alone else read_apart)(source, *stretch, width=kept.width, vocab_size=kept.vocab_size)

    with kept.place.open("r+b" if kept.done else "xb") as out:
        out.seek(kept.bytes)  # what a kill left behind it has the bytes that come here again
        for (_, stop), found in zip(stretches, _in_order(ids_of, stretches, workers), strict=True):
            if found.wrong:
                line = kept.lines + len(found.ids) + 1
                raise LawaError(f"{source}, line {line}, {found.wrong}; fetch it anew, or correct what is said of it")
            out.write(found.ids.tobytes())
            out.flush()
            os.fsync(out.fileno())
            kept.add(stop, found.ids)
            if progress:
                progress(stop, size)


def _in_order(work: Callable[[Piece], Result], pieces: Iterable[Piece], workers: int) -> Iterator[Result]:
    """What `work` makes of each piece, in their order; `workers` of them are worked on at once."""
    pool = ThreadPoolExecutor(workers)
    waiting: deque[Any] = deque()
    try:
        for piece in pieces:
            waiting.append(pool.submit(work, piece))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _identity(source: Path) -> dict[str, Any]:
    """What a source is recognised by; not its time of change, which another fetch makes anew."""
    size = source.stat().st_size
    return {"bytes": size, "sample": sample(np.memmap(source, dtype=np.uint8, mode="r")).hex() if size else ""}


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Hold the lock on `place`; a process that is killed gives it back."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_name(f".{place.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
