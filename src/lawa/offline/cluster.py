"""Carry a plan out on a Ray cluster: the items of execute.py, in batches, into files that all its machines share.

The driver lays the files out, keeps the journal and publishes; a worker opens, reads, averages and writes. A batch that
is done twice, because its worker was lost or believed so, writes the same bytes again.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lawa.errors import LawaError
from lawa.offline import execute
from lawa.offline.plan import Plan
from lawa.parallel import Cluster

_BATCHES, _LARGEST = 64, 16  # so many where there are so many items, of so many items at most


@dataclass(frozen=True)
class _Work:
    """What every batch is of; `here` is where its relative paths begin."""

    plan: Plan
    outputs: Sequence[Path]
    here: Path
    sync: bool
    allow_non_finite: bool


def run(
    plan: Plan,
    outputs: Sequence[Path],
    items: Sequence[int],
    *,
    cluster: Cluster,
    done: Callable[[int], None],
    sync: bool = True,
    allow_non_finite: bool = False,
) -> None:
    """As execute.run, on the cores of `cluster`.

    sync  a batch is done once its machine has brought its bytes to disk: nobody else can
    """
    size = max(1, min(_LARGEST, len(items) // _BATCHES))
    batches = [items[first : first + size] for first in range(0, len(items), size)]
    work = _Work(plan, outputs, Path.cwd(), sync, allow_non_finite)
    for finished in cluster.run(_do, work, batches):
        for index in finished:
            done(index)


def _do(work: _Work, batch: Sequence[int]) -> Sequence[int]:
    """On a worker: one batch; its items."""
    _check_shared(work)
    with contextlib.chdir(work.here):
        execute.run(
            work.plan, work.outputs, batch, threads=1, done=lambda index: None, allow_non_finite=work.allow_non_finite
        )
        if work.sync:
            files = {work.plan.tensors[work.plan.items[index].tensor].file for index in batch}
            for folder in work.outputs:
                for name in files:
                    _to_disk(folder / name)
    return batch


def _check_shared(work: _Work) -> None:
    """Raise where this machine does not see what the driver sees: a file of each input, every output's folder."""
    inputs = [one.files[0] for one in work.plan.catalogs if one.files]
    for path in (Path(), *inputs, *work.outputs):
        if not (work.here / path).exists():
            raise LawaError(
                f"{socket.gethostname()} does not see {work.here / path}; the machines of the cluster must share the "
                "file system of the checkpoints and of the output"
            )


def _to_disk(file: Path) -> None:
    descriptor = os.open(file, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
