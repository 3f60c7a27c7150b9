"""Averages of checkpoints in memory, for evaluation: nothing is written, and the bits are those that `lawa.average`
writes.

A snapshot is a checkpoint's tensors by name on the host, as they are stored; names that are tied have one tensor.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from lawa.averaging.coefficients import Spec, is_uniform
from lawa.averaging.coefficients import coefficients as coefficients_of
from lawa.averaging.mean import average_into
from lawa.checkpoints.catalog import Catalog, Stored
from lawa.checkpoints.sources import check_unchanged
from lawa.errors import LawaError, NonFiniteAverage, UsageError
from lawa.offline.bytes_at import CUT_OFF
from lawa.offline.policy import Policy, match

Snapshot = Mapping[str, Tensor]

_AT_ONCE = 4  # tensors that are read side by side
_ACCUMULATE = ("float32", "float64")


def load(catalog: Catalog) -> dict[str, Tensor]:
    """Every tensor of the checkpoint, each byte read once. What was put into scratch files is needed no more.

    Raises LawaError for a file that cannot be read, or changed since the catalog was made.
    """
    places = list(dict.fromkeys(catalog.tensors.values()))
    with ExitStack() as stack, ThreadPoolExecutor(_AT_ONCE) as pool:
        descriptors = {file: _opened(file, stack) for file in catalog.files}
        read = dict(zip(places, pool.map(lambda at: _read(descriptors[at.file], at), places), strict=True))
    check_unchanged(catalog)
    return {name: read[at] for name, at in catalog.tensors.items()}


def map_in(catalog: Catalog) -> dict[str, Tensor]:
    """Every tensor of the checkpoint as a memory map of its file: no bytes are read before they are used. The files may
    be removed meanwhile, but not changed; tensors are not to be written."""
    maps = {file: _map(file) for file in catalog.files}
    return {name: _view(maps[at.file], at) for name, at in catalog.tensors.items()}


def kept(snapshot: Snapshot, policy: Policy | None = None, *, label: str = "the checkpoint") -> dict[str, Tensor]:
    """What averages of `snapshot` have, as it is: by default without causal masks and the like."""
    matched = match([_held(snapshot, label)], policy or Policy())
    names = {row.name for row in matched.rows} | matched.tied.keys()
    return {name: tensor for name, tensor in snapshot.items() if name in names}


def average(
    snapshots: Sequence[Snapshot],
    coefficients: Spec | None = None,
    *,
    accumulate: str = "float32",
    out_dtype: str | None = None,
    policy: Policy | None = None,
    labels: Sequence[str] | None = None,
    allow_non_finite: bool = False,
) -> dict[str, Tensor]:
    """Σ c_i θ_i of `snapshots`, oldest first, tensor by tensor, with the bits of `lawa.average`.

    coefficients  see lawa.averaging.coefficients; None is "uniform"
    accumulate    dtype of the sums, "float32" or "float64"
    out_dtype     of averaged tensors; default: as the latest snapshot has them
    policy        what becomes of buffers, ties and integers: see policy.Policy
    labels        what messages call the snapshots

    The names are the latest snapshot's without what is left out; tied ones have one tensor, and what is not averaged
    is the latest snapshot's own tensor, no copy. Raises LawaError for snapshots that do not belong together, and
    NonFiniteAverage.
    """
    if accumulate not in _ACCUMULATE:
        raise UsageError(f"dtype={accumulate!r}, of the sums, must be float32 or float64")
    k = len(snapshots)
    labels = labels or [f"snapshot {number} of {k}" for number in range(1, k + 1)]
    weights = None if coefficients is None or is_uniform(coefficients) else coefficients_of(coefficients, k)
    held = [_held(one, label) for one, label in zip(snapshots, labels, strict=True)]
    tensors = [{at: one[name] for name, at in own.tensors.items()} for one, own in zip(snapshots, held, strict=True)]
    matched = match(held, policy or Policy())
    made: dict[str, Tensor] = {}
    for row in matched.rows:
        newest = tensors[-1][row.newest]
        if not row.averaged:
            made[row.name] = newest
            continue
        thetas = [own[at] for own, at in zip(tensors, row.stored, strict=True) if at is not None]
        out = torch.empty_like(newest, dtype=getattr(torch, out_dtype or row.newest.dtype))
        _mean(out, thetas, weights, accumulate)
        if not (allow_non_finite or bool(torch.isfinite(out).all())):
            raise NonFiniteAverage(_not_finite(row.name, thetas, labels))
        made[row.name] = out
    return made | {name: made[own] for name, own in matched.tied.items()}


def _mean(out: Tensor, thetas: Sequence[Tensor], weights: Sequence[float] | None, accumulate: str) -> None:
    """In fp64 where that was asked for, or where a snapshot is in it."""
    wide = accumulate == "float64" or any(theta.dtype == torch.float64 for theta in thetas)
    flat = [theta.reshape(-1) for theta in thetas]
    average_into(out.view(-1), flat, weights, dtype=torch.float64 if wide else torch.float32)


def _held(snapshot: Snapshot, label: str) -> Catalog:
    """As the policy sees checkpoints: tensors lie in memory as others do in a file, tied ones at one place."""
    where = Path(label)
    places = {
        name: Stored(where, tensor.data_ptr(), str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        for name, tensor in snapshot.items()
    }
    return Catalog(label=label, directory=None, format="memory", tensors=places)


def _not_finite(name: str, thetas: Sequence[Tensor], labels: Sequence[str]) -> str:
    for theta, label in zip(thetas, labels, strict=True):
        if not bool(torch.isfinite(theta).all()):
            return f"tensor {name!r} of {label} has values that are not finite; leave the checkpoint out"
    return (
        f"the average of tensor {name!r} is not finite, though every checkpoint's is: its values overflow their dtype; "
        "choose a wider one (--out-dtype)"
    )


def _opened(file: Path, stack: ExitStack) -> int:
    try:
        descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except OSError as failed:
        raise LawaError(f"{file} cannot be opened ({failed.strerror})") from None
    stack.callback(os.close, descriptor)
    return descriptor


def _read(descriptor: int, stored: Stored) -> Tensor:
    tensor = torch.empty(stored.shape, dtype=getattr(torch, stored.dtype))
    left = memoryview(tensor.view(-1).view(torch.uint8).numpy().data)
    at = stored.offset
    while left:
        try:
            done = os.preadv(descriptor, [left], at)
        except OSError as failed:
            raise LawaError(f"{stored.file} cannot be read ({failed.strerror})") from None
        if not done:
            raise LawaError(f"{stored.file}: {CUT_OFF}")
        left, at = left[done:], at + done
    return tensor


def _map(file: Path) -> mmap.mmap:
    with file.open("rb") as opened:
        return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)  # torch wants memory that could be written


def _view(mapped: mmap.mmap, at: Stored) -> Tensor:
    dtype = getattr(torch, at.dtype)
    if not at.numel:
        return torch.empty(at.shape, dtype=dtype)
    return torch.frombuffer(mapped, dtype=dtype, count=at.numel, offset=at.offset).view(at.shape)
