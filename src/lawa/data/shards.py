"""Files laid end to end and read as one array of tokens, where they are: nothing is merged.

A stretch of tokens may lie across files, and a file may end within a token (as `split -b` leaves them).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lawa.errors import LawaError, UsageError

DTYPES = {"uint8": "<u1", "uint16": "<u2", "uint32": "<u4", "int32": "<i4", "int64": "<i8"}

_SAMPLES, _SAMPLE = 64, 1 << 16  # stretches that stand for all, and bytes of each: 4 MiB


class Shards:
    """Read-only memory maps of files in order.

    bytes  of all files
    dtype  of the tokens, little-endian
    """

    def __init__(self, files: Sequence[Path], dtype: np.dtype[Any]) -> None:
        """Raises LawaError for a file that is missing or empty."""
        for file in files:
            if not file.is_file():
                raise LawaError(f"{file} does not exist; fetch it, or correct its name")
            if not file.stat().st_size:
                raise LawaError(f"{file} is empty; fetch it anew")
        self.files = list(files)
        self.dtype = dtype
        # Plain arrays: slices of np.memmap cost several times as much.
        self._maps = [np.asarray(np.memmap(file, dtype=np.uint8, mode="r")) for file in files]
        self._sizes = np.array([len(one) for one in self._maps], dtype=np.int64)
        self._ends = np.cumsum(self._sizes)
        self.bytes = int(self._ends[-1])

    def read(self, offsets: ArrayLike, tokens: ArrayLike) -> NDArray[Any]:
        """Stretches of tokens, one after another: [sum of tokens], not writable where they are one in one file.

        offsets  the byte that each begins with, counted over all files
        tokens   how many each has

        Raises LawaError for a stretch that is not in the files.
        """
        begins = np.asarray(offsets, dtype=np.int64)
        ends = begins + np.asarray(tokens, dtype=np.int64) * self.dtype.itemsize
        if ((begins < 0) | (ends < begins) | (ends > self.bytes)).any():
            raise LawaError(
                f"bytes {int(begins.min())} … {int(ends.max())} are wanted of {self.told}, which has {self.bytes}; "
                "fetch it whole, or correct what is said of it"
            )
        pieces = self._pieces(begins, ends)
        return (pieces[0] if len(pieces) == 1 else np.concatenate([_NOTHING, *pieces])).view(self.dtype)

    def _pieces(self, begins: NDArray[np.int64], ends: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
        """The bytes of these stretches, in order; of one that lies across files a piece each."""
        numbers = np.minimum(np.searchsorted(self._ends, begins, side="right"), len(self._maps) - 1)
        firsts = self._ends[numbers] - self._sizes[numbers]
        stretches = zip(numbers.tolist(), (begins - firsts).tolist(), (ends - firsts).tolist(), strict=True)
        if (ends <= self._ends[numbers]).all():
            return [self._maps[number][begin:end] for number, begin, end in stretches]
        pieces = []
        for number, begin, end in stretches:
            while begin < end:
                pieces.append(self._maps[number][begin:end])  # as far as the file goes
                size = len(self._maps[number])
                begin, end, number = max(begin - size, 0), end - size, number + 1
        return pieces

    def sample(self) -> bytes:
        """Bytes from all over the files, up to 4 MiB: all there are in smaller ones."""
        size = self.dtype.itemsize
        if self.bytes <= _SAMPLES * _SAMPLE:
            return b"".join(one.tobytes() for one in self._maps)
        offsets = np.arange(_SAMPLES, dtype=np.int64) * (self.bytes - _SAMPLE) // (_SAMPLES - 1)
        return self.read(offsets, np.full(_SAMPLES, _SAMPLE // size)).tobytes()

    def record(self) -> list[dict[str, Any]]:
        """Path and bytes of every file."""
        return [{"path": str(f), "bytes": len(one)} for f, one in zip(self.files, self._maps, strict=True)]

    @property
    def told(self) -> str:
        """The files in a few words."""
        return str(self.files[0]) if len(self.files) == 1 else f"{self.files[0]} … {self.files[-1].name}"


def dtype_of(name: str, path: str) -> np.dtype[Any]:
    """The little-endian dtype with that name; UsageError, which names the setting `path`, where there is none."""
    if name not in DTYPES:
        raise UsageError(f"{path}={name!r} must be one of {', '.join(DTYPES)}")
    return np.dtype(DTYPES[name])


def whole_batches(first: int, end: int, batch: int, where: str) -> range:
    """The updates whose batches lie whole within the sequences `first` … `end` − 1 of a run, counted from 0.

    Raises LawaError where there is none.
    """
    updates = range(-(-first // batch) + 1, end // batch + 1)
    if not updates:
        raise LawaError(
            f"{where} has the sequences {first} … {end - 1}, and no whole batch of {batch} among them; fetch more, or "
            "correct batch, context and first"
        )
    return updates


def widen(ids: NDArray[Any], context: int, vocab_size: int | None, where: str) -> NDArray[np.int64]:
    """These ids as rows of context + 1: int64 [rows, context + 1].

    Raises LawaError for one outside a vocabulary of that size (None: not checked); `where` says whose it is.
    """
    rows = ids.reshape(-1, context + 1).astype(np.int64)
    # Read as unsigned, an id below 0 is a high one. The narrow ids are in the cache by now, unlike the wide ones.
    if vocab_size is not None and ids.size and int(ids.view(f"u{ids.itemsize}").max()) >= vocab_size:
        wrong = rows[(rows < 0) | (rows >= vocab_size)][0]
        raise LawaError(
            f"{where} holds the id {wrong}, and the vocabulary ends at {vocab_size - 1}; correct vocab_size, or what "
            "is said of the files' dtype and order"
        )
    return rows


_NOTHING = np.empty(0, dtype=np.uint8)
