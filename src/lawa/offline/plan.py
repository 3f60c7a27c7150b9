"""What averaging on disk will do, to the byte, before it does anything. No torch.

Every output has the same files, laid out beforehand; the work is a list of items, each a stretch of one tensor: read
it from every checkpoint once, and write it into every output whose window has it. Items are independent.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

from lawa.checkpoints.catalog import ITEMSIZE, Catalog
from lawa.checkpoints.formats.safetensors import header_bytes
from lawa.errors import LawaError, UsageError
from lawa.offline.policy import Matched, Row

ITEM = 1 << 22  # elements: enough that a call costs nothing, few enough that threads end together
METADATA = {"format": "pt"}  # what transformers asks of a file


@dataclass(frozen=True)
class Mean:
    """One output: the average of `inputs` (indexes, oldest first), published as the directory `name`.

    coefficients  None for the uniform mean
    """

    name: str
    inputs: tuple[int, ...]
    coefficients: tuple[float, ...] | None


@dataclass(frozen=True)
class Placed:
    """A tensor in the outputs: its file, its offset there, its dtype."""

    row: Row
    file: str
    offset: int
    dtype: str


@dataclass(frozen=True)
class Item:
    """Elements start … stop of the tensor `tensor` (an index into the plan's)."""

    tensor: int
    start: int
    stop: int


@dataclass(frozen=True)
class File:
    name: str
    begin: bytes
    nbytes: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """
    accumulate  "float32" or "float64"
    files       of each output, laid out
    tensors     in the order of the files
    """

    catalogs: Sequence[Catalog]
    matched: Matched
    means: Sequence[Mean]
    accumulate: str
    files: Sequence[File]
    tensors: Sequence[Placed]

    @cached_property
    def items(self) -> list[Item]:
        return [
            Item(index, start, min(start + ITEM, placed.row.numel))
            for index, placed in enumerate(self.tensors)
            for start in range(0, placed.row.numel, ITEM)
        ]

    @property
    def bytes_read(self) -> int:
        """Each byte once, however many windows have it."""
        needed = {index for mean in self.means for index in mean.inputs}
        latest = {mean.inputs[-1] for mean in self.means}
        return sum(
            stored.nbytes
            for placed in self.tensors
            for index, stored in enumerate(placed.row.stored)
            if stored is not None and index in (needed if placed.row.averaged else latest)
        )

    @property
    def bytes_written(self) -> int:
        return len(self.means) * sum(file.nbytes for file in self.files)

    @cached_property
    def digest(self) -> str:
        """Of all that decides the output's bytes: a job goes on only where it was begun."""
        told = {
            "inputs": [_told(one) for one in self.catalogs],
            "means": [asdict(mean) for mean in self.means],
            "accumulate": self.accumulate,
            "files": [[file.name, file.nbytes, hashlib.sha256(file.begin).hexdigest()] for file in self.files],
            "averaged": [placed.row.averaged for placed in self.tensors],
            "item": ITEM,
        }
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def make_plan(
    catalogs: Sequence[Catalog],
    matched: Matched,
    means: Sequence[Mean],
    *,
    accumulate: str = "float32",
    out_dtype: str | None = None,
    shard_bytes: int = 5 * 10**9,
) -> Plan:
    """Lay out the outputs.

    out_dtype    of averaged tensors; default: the latest checkpoint's, tensor by tensor
    shard_bytes  the most that one .safetensors file holds (a larger tensor has its own)
    """
    if accumulate not in ("float32", "float64"):
        raise UsageError(f"dtype={accumulate!r}, of the sums, must be float32 or float64")
    if out_dtype not in (None, "float32", "float16", "bfloat16", "float64"):
        raise UsageError(f"out_dtype={out_dtype!r} must be one of float32, float16, bfloat16, float64")
    _check_kept(catalogs, matched, means)
    shards: list[list[tuple[Row, str]]] = [[]]
    filled = 0
    for row in matched.rows:
        dtype = out_dtype if out_dtype is not None and row.averaged else row.newest.dtype
        nbytes = row.numel * ITEMSIZE[dtype]
        if shards[-1] and filled + nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append((row, dtype))
        filled += nbytes
    files: list[File] = []
    tensors: list[Placed] = []
    for number, shard in enumerate(shards, start=1):
        shard.sort(key=lambda one: -ITEMSIZE[one[1]])  # so that each begins at a multiple of its elements' size
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        begin, offsets = header_bytes([(row.name, dtype, row.newest.shape) for row, dtype in shard], METADATA)
        nbytes = len(begin) + sum(row.numel * ITEMSIZE[dtype] for row, dtype in shard)
        files.append(File(name, begin, nbytes))
        tensors += [Placed(row, name, offsets[row.name], dtype) for row, dtype in shard]
    return Plan(catalogs=catalogs, matched=matched, means=means, accumulate=accumulate, files=files, tensors=tensors)


def _check_kept(catalogs: Sequence[Catalog], matched: Matched, means: Sequence[Mean]) -> None:
    """A tensor that is not averaged comes from its output's latest input, and is laid out as the last one has it."""
    for row in matched.rows:
        for mean in () if row.averaged else means:
            stored = row.stored[mean.inputs[-1]]
            if stored is None or (stored.shape, stored.dtype) != (row.newest.shape, row.newest.dtype):
                there, newest = catalogs[mean.inputs[-1]].label, catalogs[-1].label
                raise LawaError(
                    f"{there} has no tensor {row.name!r} as {newest} has it, and the output {mean.name!r} would take "
                    f"it from there; --ignore {row.name!r} leaves it out"
                )


def index_json(plan: Plan) -> str | None:
    """model.safetensors.index.json of a sharded output, as transformers reads it."""
    if len(plan.files) == 1:
        return None
    weights = {placed.row.name: placed.file for placed in plan.tensors}
    total = sum(placed.row.numel * ITEMSIZE[placed.dtype] for placed in plan.tensors)
    return json.dumps({"metadata": {"total_size": total}, "weight_map": weights}, indent=2, sort_keys=True) + "\n"


def _told(catalog: Catalog) -> list[object]:
    """What decides the bytes of an input; where they lie does not: scratch files may have been written anew."""
    files = [[str(file), stamp] for file, stamp in catalog.sources.items()]
    return [catalog.label, files, [[name, at.dtype, at.shape] for name, at in catalog.tensors.items()]]
