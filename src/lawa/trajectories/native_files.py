"""The files of torch.save that public runs left: opened as memory maps, and never by a pickle that could run anything.

Trainers pickle objects of their own beside the tensors: loss scalers, enumerations, NumPy's random state. Their values
are wanted, not their code: each of the few names below is read as a `Held`, which keeps what it was given and does
nothing, so neither DeepSpeed nor NumPy takes part. Every other name is refused.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lawa.checkpoints.formats.torch_file import told, unpickled
from lawa.errors import LawaError


class Held:
    """What was pickled of an object: the attributes of its state, where that is a table."""

    def __new__(cls, *_: Any) -> Held:
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, Mapping):
            self.__dict__.update(state)


_NAMES = (
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.ndarray",
    "numpy.dtype",
)


def _held(name: str) -> type[Held]:
    module, _, own = name.rpartition(".")
    return type(own, (Held,), {"__module__": module, "__qualname__": own})


_HELD: list[Any] = [_held(name) for name in _NAMES]


def load(file: Path) -> Mapping[Any, Any]:
    """The table that torch.save wrote into `file`, on the host; of tensors only what is used comes into memory.

    Files older than torch 1.6 are read whole. Raises LawaError for one that is missing or damaged, or that names
    anything but tensors, plain values and `_NAMES`.
    """
    if not file.is_file():
        raise LawaError(f"{file} is missing; fetch the whole checkpoint")
    try:
        with torch.serialization.safe_globals(_HELD):
            loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as bad:  # of a damaged file torch's reader raises whatever its code meets
        if wants := unpickled(bad):
            raise LawaError(
                f"{file} holds {wants}, which only a pickle that may run anything would load, so it is not loaded"
            ) from None
        raise LawaError(f"{file} cannot be loaded by torch ({told(bad)}); it is cut off: fetch it again") from None
    if not isinstance(loaded, Mapping):
        raise LawaError(f"{file} holds no table, but {type(loaded).__name__}; it is not what its name says")
    return loaded


def load_tensors(file: Path) -> dict[str, Tensor]:
    """The same of a file that holds tensors by name, and nothing else."""
    loaded = load(file)
    if not all(isinstance(tensor, Tensor) for tensor in loaded.values()):
        raise LawaError(f"{file} holds more than tensors by name; it is not what its name says")
    return dict(loaded)
