"""Replicas of the files of public runs, written one struct after another, and what is in them, told in another way."""

import struct
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CODES = {"uint8": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "float32": 6, "uint16": 8}


def write_index(path: Path, lengths: Sequence[int], *, documents: Sequence[int] = (0,), dtype: str = "uint16") -> Path:
    """Megatron's index of sequences that lie end to end; Pythia's lists one document."""
    width = np.dtype(dtype).itemsize
    pointers = [0, *accumulate(length * width for length in lengths)][: len(lengths)]
    header = struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, CODES[dtype], len(lengths), len(documents))
    body = struct.pack(f"<{len(lengths)}i{len(lengths)}q", *lengths, *pointers)
    path.write_bytes(header + body + struct.pack(f"<{len(documents)}q", *documents))
    return path


def cut(folder: Path, content: bytes, sizes: Sequence[int]) -> list[Path]:
    """`content` in files of so many bytes, and a last one with the rest; named as Pythia's are."""
    ends = [*accumulate(sizes), len(content)]
    files = []
    for i, (begin, end) in enumerate(zip([0, *ends], ends, strict=False)):
        files.append(folder / f"document-{i:05}-of-{len(sizes):05}.bin")
        files[-1].write_bytes(content[begin:end])
    return files


def sequences(n: int, context: int, *, dtype: str = "uint16", seed: int = 0, below: int = 50304) -> NDArray[Any]:
    """Random ids above 0: [n, context + 1]."""
    return np.random.default_rng(seed).integers(1, below, size=(n, context + 1)).astype(dtype)


class Replica:
    """Documents, and the maps that GPT-NeoX makes of them.

    `flat` are all documents of all epochs, shuffled and laid end to end; sample j is its tokens j · context …
    (j + 1) · context.
    """

    def __init__(
        self,
        folder: Path,
        lengths: Sequence[int],
        *,
        context: int,
        epochs: int = 1,
        dtype: str = "int32",
        seed: int = 0,
    ) -> None:
        random = np.random.RandomState(seed)
        ends = [*accumulate(lengths)]
        self.ids = random.randint(1, 50277, ends[-1]).astype("<u2")
        self.documents = [self.ids[end - length : end] for end, length in zip(ends, lengths, strict=True)]
        order = np.tile(np.arange(len(lengths), dtype=np.int32), epochs)
        random.shuffle(order)
        self.flat = np.concatenate([self.documents[i] for i in order])
        begins = [0, *accumulate(len(self.documents[i]) for i in order)]
        self.context, self.samples = context, (len(self.flat) - 1) // context
        starts = [bisect_right(begins, sample * context) - 1 for sample in range(self.samples + 1)]
        starts[0] = 0  # even where the first document is empty
        where = [(start, sample * context - begins[start]) for sample, start in enumerate(starts)]
        self.shuffled = np.arange(self.samples, dtype=np.uint32)
        random.shuffle(self.shuffled)
        maps = {"doc": order, "sample": np.array(where, dtype=dtype), "shuffle": self.shuffled}
        self.settings: dict[str, Any] = {"context": context}
        for name, one in maps.items():
            path = folder / f"pile_train_0_indexmap_{self.samples}ns_{context}sl_{seed}s_{name}_idx.npy"
            np.save(path, one)
            self.settings[f"{name}_idx"] = path
        self.index = write_index(folder / "pile.idx", lengths, documents=range(len(lengths) + 1))
        (folder / "pile.bin").write_bytes(self.ids.tobytes())
        self.prefix = folder / "pile"

    def stream(self) -> NDArray[np.int64]:
        """Every sample that the run can read, in its order; the last one never is."""
        rows = [self.flat[j * self.context : (j + 1) * self.context + 1] for j in self.shuffled[:-1].tolist()]
        return np.array(rows, dtype=np.int64).reshape(-1, self.context + 1)
