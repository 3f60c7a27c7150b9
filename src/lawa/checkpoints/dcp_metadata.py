"""What torch DCP's `.metadata` says of its tensors, read without running any of it. No torch.

The file is a pickle, and DCP loads it with nothing but `pickle.load`: whoever wrote it could have anything run. Here
it is read with stand-ins that hold values and do nothing, and a name that DCP does not write is refused. Every
directory goes through `check` before DCP sees it.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lawa.errors import LawaError

METADATA = ".metadata"

_OURS = {
    "pathlib": {"PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
        "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
    "torch.serialization": {"_get_layout"},
}  # fmt: skip
_DTYPES = {"float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"}

Tensors = dict[str, tuple[str, tuple[int, ...]]]


def read(directory: Path) -> Tensors:
    """{name: (dtype as torch calls it, shape)} of the tensors in the DCP checkpoint in `directory`.

    Raises LawaError for a damaged file, and for a name in it that DCP does not write.
    """
    return {name: one for name, one in _read(directory).items() if one is not None}


def ways(directory: Path) -> Mapping[str, Any]:
    """What DCP's planner noted of the way to each tensor in the nested state that was saved; read it first."""
    with (directory / METADATA).open("rb") as opened:
        return getattr(_StandIns(opened).load(), "planner_data", None) or {}


def check(directory: Path) -> None:
    """Raise LawaError where `read` does, and for an entry that is no tensor: DCP would unpickle it, too."""
    for name, one in _read(directory).items():
        if one is None:
            raise LawaError(
                f"{directory / METADATA} lists {name!r}, which is no tensor: no checkpoint of ours; do not load it"
            )


def _read(directory: Path) -> dict[str, tuple[str, tuple[int, ...]] | None]:
    """The same with None for what is no tensor."""
    file = directory / METADATA
    try:
        with file.open("rb") as opened:
            stored = _StandIns(opened).load().state_dict_metadata
        return {
            name: (one.properties.state[0], tuple(one.size)) if hasattr(one, "properties") else None
            for name, one in stored.items()
        }
    except _Foreign as foreign:
        raise LawaError(
            f"{file} names {foreign}, which torch DCP does not write there: loading it could run anything; do not"
        ) from None
    except OSError as missing:
        raise LawaError(f"{file} cannot be read ({missing.strerror}); the checkpoint is incomplete") from None
    except (pickle.UnpicklingError, EOFError, AttributeError, TypeError, ValueError, IndexError, KeyError) as bad:
        raise LawaError(f"{file} is no metadata of torch DCP ({bad!r}); it is damaged") from None


class _Foreign(Exception):
    """The name of what a pickle would have had imported."""


class _StandIn:
    def __new__(cls, *arguments: Any) -> Any:
        return super().__new__(cls)

    def __init__(self, *arguments: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {"state": state})


class _StandIns(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return name
        if (module, name) == ("torch", "Size"):
            return tuple
        if name not in _OURS.get(module, ()):
            raise _Foreign(f"{module}.{name}")
        return type(name, (_StandIn,), {})
