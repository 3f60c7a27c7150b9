"""Batches of AI2's runs, whose order is a list of instances: OLMo 1 and 2.

An instance is `context` + 1 tokens of a token file, which begin at a multiple of that; what is left at a file's end
belongs to none. Instances are numbered through all files, in the order of the run's data.paths. The list, which the
trainer writes as global_indices.npy, has uint32 numbers of instances, little-endian and without a header: those of
batch b are at b · batch … (b + 1) · batch − 1, whatever the number of ranks. A rest that fills no batch is left out.
Each epoch has a list of its own; the file holds that of the epoch which the run was in.

A row is an instance of max_sequence_length tokens, and context one less: the trainer gives all of them to the model,
and takes the last position's logits out of the loss. With data.instance_filter (OLMo 2) it also takes out whole
instances that repeat themselves; that is no matter of order, and here they are as they are.

Source: allenai/OLMo at 59a53e3, olmo/data/memmap_dataset.py, olmo/data/iterable_dataset.py and olmo/train.py.
"""

from __future__ import annotations

import hashlib
import json
import resource
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lawa.data.given import at_least, positions
from lawa.data.shards import dtype_of, whole_batches, widen
from lawa.data.token_file import sample
from lawa.errors import LawaError, UsageError

_NPY = b"\x93NUMPY"  # what np.save begins a file with
_SAMPLES, _SAMPLE = 64, 1 << 14  # token files that stand for all, and tokens of each


@dataclass(frozen=True, kw_only=True)
class IndicesSettings:
    """The order of a run, and its text.

    global_indices  the list of instances, or a part of it
    files           the token files, all of them, in the order of the run's data.paths
    batch           instances an update: global_train_batch_size
    context         max_sequence_length − 1
    dtype           of the tokens, the run's memmap_dtype: uint16 for OLMo 1, uint32 for OLMo 2
    vocab_size      ids are below it; looked at in what is read
    first           the run's number, from 0, of the sequence that the list begins with: that of its first entry in a
                    part of it; in epoch e (from 0), e · ⌊entries/batch⌋ · batch, of an epoch's whole list, is added
    """

    global_indices: Path
    files: list[Path]
    batch: int
    context: int
    dtype: str = "uint16"
    vocab_size: int | None = None
    first: int = 0

    def __post_init__(self) -> None:
        at_least("indices", 1, batch=self.batch, context=self.context)
        at_least("indices", 0, first=self.first)
        if self.dtype not in ("uint16", "uint32"):
            raise UsageError(f"batches.indices.dtype={self.dtype!r} must be uint16 or uint32")


class Indices:
    """The batches of a list of instances (`batches.Batches`). Token files are mapped when they are first read from."""

    def __init__(self, settings: IndicesSettings) -> None:
        """Raises LawaError for missing files, for a list that is no raw uint32 or has no batch."""
        self.settings = settings
        self.context, self.batch = settings.context, settings.batch
        self._dtype = dtype_of(settings.dtype, "batches.indices.dtype")
        self._indices = _list(settings.global_indices)
        end = settings.first + len(self._indices)
        self.updates = whole_batches(settings.first, end, self.batch, str(settings.global_indices))
        self._bytes = [_size(file) for file in settings.files]
        instance = (self.context + 1) * self._dtype.itemsize
        self._ends = np.cumsum([size // instance for size in self._bytes], dtype=np.int64)
        # A memory map keeps a file open: of many files only some are, and half of what may be open is left to others.
        open_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2
        self._instances = lru_cache(maxsize=max(1, open_files))(self._open)

    def rows(self, t: int, rows: slice | None = None) -> NDArray[np.int64]:
        where, vocab_size = str(self.settings.global_indices), self.settings.vocab_size
        asked = positions(t, rows, batch=self.batch, updates=self.updates, where=where)
        instances = self._indices[asked - self.settings.first].astype(np.int64)
        files = np.searchsorted(self._ends, instances, side="right")
        if files.size and files.max() == len(self._ends):
            raise LawaError(
                f"the batch of update {t} has instance {int(instances.max())}, and the {len(self._ends)} files have "
                f"{self._instances_of_all}; give all files of the run's data.paths, and its context and dtype"
            )
        ids = np.empty((len(instances), self.context + 1), dtype=np.int64)
        order = np.argsort(files, kind="stable")
        for part in np.split(order, np.flatnonzero(np.diff(files[order])) + 1) if len(order) else ():
            file = int(files[part[0]])
            found = self._instances(file)[instances[part] - (self._ends[file - 1] if file else 0)]
            if vocab_size is not None and found.max() >= vocab_size:
                widen(found, self.context, vocab_size, f"the batch of update {t}")  # raises, and says which
            ids[part] = found  # widened on the way, without a pass of its own
        return ids

    @cached_property
    def digest(self) -> str:
        settings = self.settings
        known = {name: getattr(settings, name) for name in ("batch", "context", "dtype", "first")}
        hashed = hashlib.sha256(json.dumps({**known, "bytes": self._bytes}, sort_keys=True).encode())
        hashed.update(sample(self._indices.view(np.uint8)))
        for file in dict.fromkeys(np.linspace(0, len(self._bytes) - 1, _SAMPLES).astype(int).tolist()):
            hashed.update(np.fromfile(settings.files[file], dtype=self._dtype, count=_SAMPLE).tobytes())
        return hashed.hexdigest()

    def describe(self) -> dict[str, Any]:
        settings = self.settings
        return {
            "kind": "indices",
            "global_indices": {"path": str(settings.global_indices), "entries": len(self._indices)},
            "files": [{"path": str(f), "bytes": size} for f, size in zip(settings.files, self._bytes, strict=True)],
            "instances": self._instances_of_all,
            **{name: getattr(settings, name) for name in ("batch", "context", "dtype", "first")},
            "updates": [self.updates[0], self.updates[-1]],
            "order": "exact",
            "loss": "of all instances; what the run's data.instance_filter took out of its loss is in it",
        }

    @property
    def _instances_of_all(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def _open(self, file: int) -> NDArray[np.integer]:
        """The instances of a token file, as a read-only memory map [instances, context + 1]."""
        path, width = self.settings.files[file], self.context + 1
        count = self._bytes[file] // (width * self._dtype.itemsize)
        mapped = np.memmap(path, dtype=self._dtype, mode="r", shape=(count, width))
        _refuse_header(path, mapped.reshape(-1).view(np.uint8)[: len(_NPY)].tobytes())
        return np.asarray(mapped)  # indexing a plain array costs less


def _list(path: Path) -> NDArray[np.uint32]:
    """The list of instances as a read-only memory map."""
    size = _size(path)
    if not size or size % 4:
        raise LawaError(f"{path} has {size} bytes, which is no list of uint32 numbers; fetch it whole")
    mapped = np.memmap(path, dtype="<u4", mode="r")
    _refuse_header(path, mapped[:2].tobytes())
    return np.asarray(mapped)


def _refuse_header(path: Path, begins: bytes) -> None:
    if begins.startswith(_NPY):
        raise LawaError(
            f"{path} was written by np.save, with a header; write the bare numbers with tofile, as OLMo does"
        )


def _size(path: Path) -> int:
    if not path.is_file():
        raise LawaError(f"{path} does not exist; fetch it, or correct its name")
    return path.stat().st_size
