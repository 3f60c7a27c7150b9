"""A checkpoint as its tensors' places in files: what averaging on disk reads. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

ITEMSIZE = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint64": 8, "uint32": 4, "uint16": 2, "uint8": 1, "bool": 1,
}  # fmt: skip
INDEX = "model.safetensors.index.json"
WEIGHTS = ("model.safetensors", INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Of a Hugging Face directory, in the order in which transformers looks for them."""

Stamp = tuple[int, int] | None  # of a file: bytes, and when it was last written, in ns; None where there is none
AVERAGED = ("float64", "float32", "float16", "bfloat16")  # the others keep their latest value


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor, whose elements lie one after the other in a file.

    offset  bytes from the file's beginning
    dtype   as torch calls it, "bfloat16"
    """

    file: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * ITEMSIZE[self.dtype]


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """What a checkpoint holds and where.

    label      what messages call it: its path, or REPO@REVISION
    directory  where its configuration and tokenizer lie, if anywhere
    format     as `lawa inspect` calls it
    tensors    by canonical name, in the file's order; tied ones under each of their names, at the same place
    sources    the files that it was read from, as they were before: `tensors` may have been put together of them
    """

    label: str
    directory: Path | None
    format: str
    tensors: Mapping[str, Stored]
    metadata: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    sources: Mapping[Path, Stamp] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def nbytes(self) -> int:
        """Of its tensors, tied ones once."""
        return sum(stored.nbytes for stored in set(self.tensors.values()))

    @property
    def files(self) -> list[Path]:
        return sorted({stored.file for stored in self.tensors.values()})
