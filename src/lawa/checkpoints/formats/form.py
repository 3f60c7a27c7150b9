"""What every reader of a format gives: how its checkpoint is called, and the way to its tensors. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lawa.checkpoints.catalog import Stored

Scratch = Callable[[], Path]  # a new, empty folder, which its caller removes when nothing is read from it any more


@dataclass(frozen=True)
class Tensors:
    """Places by the names that the files have."""

    places: dict[str, Stored]
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Format:
    """A checkpoint whose format was recognised.

    name   "safetensors" or "torch" (one file), "hf", "dcp", "deepspeed", "neox" (directories)
    whole  whether it can only be loaded whole: reading it takes the memory of one checkpoint (of sharded ones, of the
           largest file)
    read   its tensors; what has no place of its own in a file is written into folders of `scratch`
    """

    name: str
    whole: bool
    read: Callable[[Scratch], Tensors]
