"""What every rank does in test_deepspeed.py: DeepSpeed engines with an averager attached, on gloo processes.

python -m torch.distributed.run --standalone --nproc-per-node 2 tests/integrations/deepspeed_checks.py FOLDER CHECK…
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from averaging.zero_checks import engine, masters, mean, step
from contracts.contract import same
from launching import run_to_the_end
from lawa import WeightAverager
from lawa.errors import LawaError
from lawa.integrations.deepspeed import attach


def export(folder: Path, way: str) -> None:
    """An average in the weights' place goes to disk by DeepSpeed itself; without the averager's state."""
    run = engine(way)
    averager = WeightAverager(run, mode="evaluate", every=1, window=3)
    attach(run, averager)
    held = []
    for t in (1, 2, 3):
        step(run, t)
        held.append(masters(run))
    with averager.averaged():
        run.save_checkpoint(str(folder / way), "average")
    assert same(masters(run), held[-1])
    assert not (folder / way / "average" / "lawa").exists()
    if dist.get_rank() == 0:
        average: dict[str, Any] = {**mean(held)}
        np.savez(folder / f"{way}.npz", **average)


def accumulated_micro_batches_are_one_update() -> None:
    run = engine("ZeRO-2", accumulate=3)
    averager = WeightAverager(run, mode="evaluate", every=1, window=4)
    attach(run, averager)
    for t in range(1, 9):
        step(run, t)
    assert run.global_steps == averager.step == 2
    assert averager.steps() == [1, 2]


def a_skipped_step_counts_and_is_marked() -> None:
    run = engine("ZeRO-2")
    averager = WeightAverager(run, mode="evaluate", every=1, window=4)
    attach(run, averager)
    step(run, 1)
    before = masters(run)
    run.backward(run(torch.zeros(2, 5, dtype=torch.long)).sum() * float("inf"))
    run.step()
    assert same(masters(run), before)
    step(run, 3)
    assert averager.steps() == [1, 2, 3]
    assert averager.skipped() == [2]


def what_is_not_there_is_said(folder: Path) -> None:
    run = engine("ZeRO-2")
    run.save_checkpoint(str(folder / "before"))  # averaging begins later
    averager = WeightAverager(run, mode="evaluate", every=1, window=2)
    with attach(run, averager):
        with pytest.warns(UserWarning, match=r"has no state of the averager \(lawa/\): its averages start anew"):
            run.load_checkpoint(str(folder / "before"))
        assert run.load_checkpoint(str(folder / "nowhere")) == (None, None)
        step(run, 1)
        run.save_checkpoint(str(folder / "with"))
    step(run, 2)
    run.save_checkpoint(str(folder / "after"), "it")
    assert averager.steps() == [1], "removed"
    assert (folder / "with" / "global_step1" / "lawa").is_dir()
    assert not (folder / "after" / "it" / "lawa").exists()
    fresh = WeightAverager(run, mode="evaluate", every=1, window=2)
    with attach(run, fresh):
        run.load_checkpoint(str(folder / "with"), load_module_only=True)
        assert fresh.steps() == []
        run.load_checkpoint(str(folder / "with"))
        assert fresh.steps() == [1]


def save_for_others(folder: Path) -> None:
    run = engine("ZeRO-2")
    averager = WeightAverager(run, mode="evaluate", every=1, window=2)
    attach(run, averager)
    step(run, 1)
    run.save_checkpoint(str(folder), "two")


def others_are_refused(folder: Path) -> None:
    """DeepSpeed refuses its own part of a checkpoint first; here, only the averager's is of other ranks."""
    run = engine("ZeRO-2")
    run.save_checkpoint(str(folder), "one")
    shutil.copytree(folder / "two" / "lawa", folder / "one" / "lawa")
    attach(run, WeightAverager(run, mode="evaluate", every=1, window=2))
    with pytest.raises(LawaError, match="the saved state's tensors are"):
        run.load_checkpoint(str(folder), "one")


CHECKS: dict[str, Any] = {
    check.__name__: check
    for check in (
        export,
        accumulated_micro_batches_are_one_update,
        a_skipped_step_counts_and_is_marked,
        what_is_not_there_is_said,
        save_for_others,
        others_are_refused,
    )
}


def main() -> None:
    folder, *names = sys.argv[1:]
    dist.init_process_group("gloo")
    for name in names:
        check, _, way = name.partition(":")
        own = CHECKS[check]
        own(*[Path(folder), way][: own.__code__.co_argcount])
        os.write(sys.stdout.fileno(), f"rank {dist.get_rank()}: {name}\n".encode())  # whole, between other ranks'
    dist.barrier()


if __name__ == "__main__":
    run_to_the_end(main)
