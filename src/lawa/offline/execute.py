"""Carry a plan out: the items by threads, each byte of each input read once.

An item is one call of the C loop, which reads, averages and writes without Python's lock. Where it does not serve
(it was not built; sums in float64; other dtypes) torch does the same work with the same bits.
"""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lawa.checkpoints.catalog import ITEMSIZE, Stored
from lawa.disk import reserve
from lawa.errors import LawaError, NonFiniteAverage
from lawa.offline import files_kernel
from lawa.offline.bytes_at import TRUNCATED, read_all, write_all
from lawa.offline.files_kernel import Done
from lawa.offline.plan import Item, Placed, Plan

_COPIED = 1 << 24  # bytes of a copy at once


class Opened:
    """Descriptors of the plan's inputs and outputs, opened when they are first used and closed together."""

    def __init__(self, outputs: Sequence[Path]) -> None:
        self._outputs = outputs
        self._open: dict[tuple[Path, int], int] = {}
        self._lock = threading.Lock()

    def input(self, file: Path) -> int:
        return self._descriptor(file, os.O_RDONLY)

    def output(self, index: int, file: str) -> int:
        return self._descriptor(self.place(index, file), os.O_RDWR)

    def place(self, index: int, file: str) -> Path:
        return self._outputs[index] / file

    def _descriptor(self, file: Path, flags: int) -> int:
        with self._lock:
            if (file, flags) not in self._open:
                try:
                    self._open[file, flags] = os.open(file, flags | getattr(os, "O_CLOEXEC", 0))
                except OSError as failed:
                    raise LawaError(f"{file} cannot be opened ({failed.strerror})") from None
            return self._open[file, flags]

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])


@contextmanager
def opened(outputs: Sequence[Path]) -> Iterator[Opened]:
    """For outputs that lie in these directories; as many files open at once as the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    files = Opened(outputs)
    try:
        yield files
    finally:
        files.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def lay_out(plan: Plan, directory: Path) -> None:
    """The files of one output, with their headers; their blocks are reserved, which makes every write cheaper."""
    for file in plan.files:
        with (directory / file.name).open("xb") as new:
            new.write(file.begin)
            new.flush()
            reserve(new.fileno(), file.nbytes)


def run(
    plan: Plan,
    outputs: Sequence[Path],
    items: Sequence[int],
    *,
    threads: int,
    done: Callable[[int], None],
    allow_non_finite: bool = False,
) -> None:
    """Do these `items` of the plan (indexes), into laid-out files in the `outputs`, one directory for each mean.

    done  called with an item's index when its bytes are written; by one thread at a time
    """
    left = iter(items)
    lock = threading.Lock()
    failures: list[BaseException] = []

    def work() -> None:
        while not failures:
            with lock:
                index = next(left, None)
            if index is None:
                return
            try:
                do(plan, plan.items[index], files, allow_non_finite=allow_non_finite)
                with lock:
                    done(index)
            except BaseException as failed:
                failures.append(failed)

    with opened(outputs) as files:
        others = [threading.Thread(target=work) for _ in range(threads - 1)]
        try:
            for thread in others:
                thread.start()
            work()
            for thread in others:
                thread.join()
        except BaseException as interrupted:  # between items; the threads still use the descriptors
            failures.append(interrupted)
        finally:
            for thread in others:
                if thread.ident is not None:  # it was started
                    thread.join()
    if failures:
        raise failures[0]


def do(plan: Plan, item: Item, files: Opened, *, allow_non_finite: bool = False) -> None:
    """One item, into every output."""
    placed = plan.tensors[item.tensor]
    if not placed.row.averaged:
        for newest in {mean.inputs[-1] for mean in plan.means}:
            _copy(plan, placed, item, files, newest)
        return
    needed = sorted({index for mean in plan.means for index in mean.inputs})
    stored = [_there(placed.row.stored[index]) for index in needed]
    position = {index: at for at, index in enumerate(needed)}
    members = [[position[index] for index in mean.inputs] for mean in plan.means]
    sources = [(files.input(one.file), one.offset, one.dtype) for one in stored]
    targets = [(files.output(output, placed.file), placed.offset, placed.dtype) for output in range(len(plan.means))]
    coefficients = [mean.coefficients for mean in plan.means]
    dtypes = {one.dtype for one in stored}
    function = (
        files_kernel.average
        if files_kernel.serve(dtypes, placed.dtype, plan.accumulate)
        else files_kernel.average_by_torch
    )
    failed = function(sources, targets, members, coefficients, item.start, item.stop, accumulate=plan.accumulate)
    if failed.errno:
        if failed.at < len(stored):
            raise _unreadable(stored[failed.at], failed)
        raise _unwritable(files.place(failed.at - len(stored), placed.file), failed)
    if failed.not_finite and not allow_non_finite:
        raise _non_finite(plan, placed, failed.not_finite[0])


def _copy(plan: Plan, placed: Placed, item: Item, files: Opened, newest: int) -> None:
    """The values of the input `newest`, into every output whose latest it is."""
    stored = _there(placed.row.stored[newest])
    outputs = [output for output, mean in enumerate(plan.means) if mean.inputs[-1] == newest]
    size = ITEMSIZE[stored.dtype]
    for at in range(item.start * size, item.stop * size, _COPIED):
        nbytes = min(_COPIED, item.stop * size - at)
        try:
            piece = read_all(files.input(stored.file), nbytes, stored.offset + at)
        except OSError as failed:
            raise _unreadable(stored, Done(failed.errno or 0)) from None
        for output in outputs:
            try:
                write_all(files.output(output, placed.file), piece, placed.offset + at)
            except OSError as failed:
                raise _unwritable(files.place(output, placed.file), Done(failed.errno or 0)) from None


def _unreadable(stored: Stored, failed: Done) -> LawaError:
    if failed.errno == TRUNCATED:
        return LawaError(f"{stored.file}: {failed.sentence}")
    return LawaError(f"{stored.file} cannot be read ({failed.sentence})")


def _unwritable(file: Path, failed: Done) -> LawaError:
    return LawaError(f"{file} cannot be written ({failed.sentence}); make room there, or choose another output")


def _there(stored: Stored | None) -> Stored:
    assert stored is not None  # match() and make_plan() have seen to it
    return stored


def _non_finite(plan: Plan, placed: Placed, output: int) -> NonFiniteAverage:
    """Named by the first checkpoint in which the tensor is not finite."""
    for index in plan.means[output].inputs:
        stored = _there(placed.row.stored[index])
        if not files_kernel.is_finite(stored):
            where = f"tensor {placed.row.name!r} of {plan.catalogs[index].label} has values that are not finite"
            return NonFiniteAverage(f"{where}; leave the checkpoint out, or allow it with --allow-non-finite")
    return NonFiniteAverage(
        f"the average of tensor {placed.row.name!r} is not finite, though every checkpoint's is: its values overflow "
        f"{placed.dtype}; choose a wider --out-dtype"
    )
