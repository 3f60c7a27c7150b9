"""Names, dtypes and shapes of a checkpoint's tensors, read from headers alone. No torch.

Format "hf" is safetensors, whole or in shards with an index; format "dcp" is torch DCP.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from lawa.checkpoints import dcp_metadata
from lawa.checkpoints.dcp_metadata import METADATA
from lawa.checkpoints.publish import refuse_outside
from lawa.errors import LawaError
from lawa.pretrain.directory import WEIGHTS

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "BOOL": "bool"}


@dataclass(frozen=True)
class Described:
    """A tensor without its values; `dtype` as torch calls it."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def format_of(directory: Path) -> str | None:
    """ "hf", "dcp", or None where there are no weights."""
    if (directory / WHOLE).is_file() or (directory / INDEX).is_file():
        return "hf"
    return "dcp" if (directory / WEIGHTS / METADATA).is_file() else None


def tensors_of(directory: Path) -> list[Described]:
    """The tensors of a checkpoint of either format; LawaError naming a file that cannot be read."""
    if format_of(directory) == "dcp":
        found = dcp_metadata.read(directory / WEIGHTS)
        return [Described(name.removeprefix("model."), dtype, shape) for name, (dtype, shape) in found.items()]
    return [tensor for file in _files(directory) for tensor in _safetensors(file)]


def _files(directory: Path) -> list[Path]:
    index = directory / INDEX
    if not index.is_file():
        return [directory / WHOLE]
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as bad:
        raise LawaError(f"{index} is no index of shards ({bad!r}); it is damaged") from bad
    for name in names:
        refuse_outside(name, index)
    return [directory / name for name in names]


def _safetensors(file: Path) -> Iterator[Described]:
    if not file.is_file():
        raise LawaError(f"{file} is missing; the checkpoint is incomplete")
    try:
        with safe_open(file, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (it is no mapping)
                part = tensors.get_slice(name)
                dtype = str(part.get_dtype())
                yield Described(name, _DTYPES.get(dtype, dtype.lower()), tuple(part.get_shape()))
    except SafetensorError as bad:
        raise LawaError(f"{file} cannot be read ({bad}); it is damaged") from bad
