"""Megatron's token files PREFIX.bin and PREFIX.idx, read where they are: mapped into memory, never copied.

The index, little-endian:

    bytes 0 … 8    MMIDIDX, two zero bytes
    9              uint64 version, 1
    17             uint8 dtype of the tokens: 1 uint8, 2 int8, 3 int16, 4 int32, 5 int64, 8 uint16
    18, 26         uint64 N sequences, uint64 D entries of documents
    34             int32 [N] lengths in tokens; int64 [N] first bytes in PREFIX.bin; int64 [D] the sequence that each
                   document begins with, and after the last of them N

Source: NVIDIA/Megatron-LM, megatron/core/datasets/indexed_dataset.py; EleutherAI/gpt-neox wrote Pythia's.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lawa.data.files import File, find
from lawa.errors import LawaError

_MAGIC = b"MMIDIDX\0\0"
_HEADER = struct.Struct("<9sQBQQ")
_DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}

_SAMPLES, _SAMPLE = 256, 1 << 17  # parts of PREFIX.bin that stand for it, and bytes of each: 32 MiB in all


@dataclass(frozen=True, kw_only=True, eq=False)
class Megatron:
    """An open pair of files whose header and sizes agree; the arrays are read-only memory maps.

    lengths    tokens of each sequence, int32 [sequences]
    pointers   first byte of each sequence, int64 [sequences]
    documents  the sequences that documents begin with, then the number of sequences: int64 [documents + 1]
    ids        the tokens of all sequences, one after another
    """

    prefix: Path
    lengths: NDArray[np.int32]
    pointers: NDArray[np.int64]
    documents: NDArray[np.int64]
    ids: NDArray[np.integer]

    @property
    def files(self) -> list[File]:
        """PREFIX.bin and PREFIX.idx, without digests."""
        return find([f"{self.prefix}.bin", f"{self.prefix}.idx"])

    @property
    def provenance(self) -> dict[str, Any]:
        return {"megatron": str(self.prefix.absolute())}

    def offsets(self) -> NDArray[np.int64]:
        """Where each document begins, in tokens, and where the last one ends: int64 [documents + 1]."""
        ends = np.append(self.pointers, self.ids.nbytes)
        return ends[self.documents] // self.ids.itemsize

    def sample(self) -> NDArray[np.integer]:
        """Tokens from all over PREFIX.bin, up to 32 MiB of them: all there are in a smaller file."""
        size = _SAMPLE // self.ids.itemsize
        if len(self.ids) <= _SAMPLES * size:
            return np.asarray(self.ids)
        starts = np.arange(_SAMPLES, dtype=np.int64) * (len(self.ids) - size) // (_SAMPLES - 1)
        return np.concatenate([self.ids[start : start + size] for start in starts])

    def digests(self) -> dict[str, str]:
        """Suffix → SHA-256: of the whole index, and of the sample that stands for the tokens."""
        return {
            ".bin": hashlib.sha256(self.sample().tobytes()).hexdigest(),
            ".idx": find([f"{self.prefix}.idx"])[0].digest(),
        }

    def check(self, vocab_size: int) -> None:
        """Raise LawaError unless the sequences lie end to end and the sampled ids are below `vocab_size`."""
        sizes = self.lengths.astype(np.int64) * self.ids.itemsize
        if not np.array_equal(self.pointers, np.cumsum(sizes) - sizes) or sizes.sum() != self.ids.nbytes:
            raise LawaError(
                f"the sequences of {self.prefix}.idx do not lie end to end in {self.prefix}.bin; write the two anew"
            )
        bounds = self.documents
        if bounds[0] != 0 or bounds[-1] != len(self.lengths) or (np.diff(bounds) < 0).any():
            raise LawaError(f"the documents of {self.prefix}.idx do not cover its sequences in order; write it anew")
        sample = self.sample()
        wrong = sample[(sample < 0) | (sample >= vocab_size)]
        if len(wrong):
            raise LawaError(
                f"{self.prefix}.bin holds the id {wrong[0]}, and the vocabulary of data.tokenizer ends at "
                f"{vocab_size - 1}; give the tokenizer that made the file"
            )

    def cut(self, fraction: float) -> int:
        """The token that validation begins with: the last documents, as near to `fraction` of the tokens as they come.

        Raises LawaError when there are not two documents.
        """
        starts = self.offsets()[1:-1]  # of every document but the first
        if not len(starts):
            raise LawaError(
                f"{self.prefix}.idx has one document, which cannot be split; name validation text (data.validation)"
            )
        return int(starts[np.abs(starts - (1 - fraction) * len(self.ids)).argmin()])

    def ends(self, end_of_text: int) -> float:
        """The share of documents that end with `end_of_text`, of a thousand spread over all."""
        offsets = self.offsets()
        offsets = offsets[np.append(True, np.diff(offsets) > 0)]  # documents without a token have no last one
        chosen = np.unique(np.linspace(1, len(offsets) - 1, num=1000, dtype=np.int64))
        return float(np.mean(self.ids[offsets[chosen] - 1] == end_of_text))


def open_megatron(prefix: str | Path) -> Megatron:
    """Open PREFIX.bin and PREFIX.idx; header and sizes are checked, in constant time.

    Raises LawaError for missing, truncated or unknown files.
    """
    path, tokens = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
    for file in (path, tokens):
        if not file.is_file():
            raise LawaError(f"{file} does not exist; a Megatron source names the prefix of a .bin and an .idx file")
    index = open_index(path)
    if len(index.documents) < 2:
        raise LawaError(f"{path} lists no document; name another prefix")
    if tokens.stat().st_size != index.bytes:
        raise LawaError(
            f"{tokens} has {tokens.stat().st_size} bytes, and its index speaks of {index.bytes}; fetch or write it anew"
        )
    return Megatron(
        prefix=Path(prefix),
        lengths=index.lengths,
        pointers=index.pointers,
        documents=index.documents,
        ids=np.memmap(tokens, dtype=index.dtype, mode="r"),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Index:
    """An open index, whatever file or files its tokens are in; the arrays are read-only memory maps.

    dtype      of the tokens
    lengths    tokens of each sequence, int32 [sequences]
    pointers   first byte of each sequence, int64 [sequences]
    documents  the sequences that documents begin with, as the file has them: int64; that of Pythia's batches has one
    """

    path: Path
    dtype: np.dtype[Any]
    lengths: NDArray[np.int32]
    pointers: NDArray[np.int64]
    documents: NDArray[np.int64]

    @property
    def bytes(self) -> int:
        """Where the last sequence ends."""
        return int(self.pointers[-1]) + int(self.lengths[-1]) * self.dtype.itemsize


def open_index(path: Path) -> Index:
    """Open an index; its header and size are checked, in constant time.

    Raises LawaError for one that is missing, truncated, empty or unknown.
    """
    if not path.is_file():
        raise LawaError(f"{path} does not exist; name the index of Megatron's that goes with the tokens")
    with path.open("rb") as opened:
        header = opened.read(_HEADER.size)
    if not header.startswith(_MAGIC) or len(header) < _HEADER.size:
        raise LawaError(f"{path} is no index of Megatron's (it does not begin with MMIDIDX); name another prefix")
    _, version, code, sequences, documents = _HEADER.unpack(header)
    if version != 1 or code not in _DTYPES:
        raise LawaError(
            f"{path} has version {version} and dtype {code}; version 1 with whole numbers can be read: write it anew"
        )
    expected = _HEADER.size + 12 * sequences + 8 * documents
    if path.stat().st_size != expected:
        raise LawaError(
            f"{path} has {path.stat().st_size} bytes, and its header speaks of {expected}; it is truncated: fetch "
            "or write it anew"
        )
    if not sequences or not documents:
        raise LawaError(f"{path} lists no sequence; name another prefix")

    def part(dtype: str, offset: int, count: int) -> Any:
        return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=(count,))

    return Index(
        path=path,
        dtype=np.dtype(_DTYPES[code]),
        lengths=part("<i4", _HEADER.size, sequences),
        pointers=part("<i8", _HEADER.size + 4 * sequences, sequences),
        documents=part("<i8", _HEADER.size + 12 * sequences, documents),
    )
