"""Names, dtypes and shapes of a checkpoint's tensors, read from headers alone. No torch.

Format "hf" is safetensors, whole or in shards with an index; format "dcp" is torch DCP, whose metadata is a pickle of
torch's classes: it is read with stand-ins that hold values and do nothing, and nothing it names is imported.
"""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lawa.errors import LawaError

WHOLE, INDEX, WEIGHTS = "model.safetensors", "model.safetensors.index.json", "weights"
_METADATA = ".metadata"
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
    return "dcp" if (directory / WEIGHTS / _METADATA).is_file() else None


def tensors_of(directory: Path) -> list[Described]:
    """The tensors of a checkpoint of either format; LawaError naming a file that cannot be read."""
    if format_of(directory) == "dcp":
        return list(_dcp(directory / WEIGHTS / _METADATA))
    return [tensor for file in _files(directory) for tensor in _safetensors(file)]


def _files(directory: Path) -> list[Path]:
    index = directory / INDEX
    if not index.is_file():
        return [directory / WHOLE]
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as bad:
        raise LawaError(f"{index} is no index of shards ({bad!r}); it is damaged") from bad
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


def _dcp(metadata: Path) -> Iterator[Described]:
    try:
        with metadata.open("rb") as file:
            found = _StandIns(file).load()
        for name, stored in found.state_dict_metadata.items():
            if hasattr(stored, "size"):  # bytes have none
                yield Described(name.removeprefix("model."), stored.properties.state[0], tuple(stored.size))
    except (pickle.UnpicklingError, EOFError, AttributeError, TypeError, ValueError, IndexError, KeyError) as bad:
        raise LawaError(f"{metadata} is no metadata of torch DCP ({bad!r}); it is damaged") from bad


class _StandIn:
    def __new__(cls, *arguments: Any) -> Any:
        return super().__new__(cls)

    def __init__(self, *arguments: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {"state": state})


class _StandIns(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch":
            return tuple if name == "Size" else name  # what else comes from there is a dtype
        return type(name, (_StandIn,), {})
