"""What each process of a launched run does: one run after the other, as a plan says. test_ranks.py compares them.

    torchrun … launched.py PLAN.json        PLAN: [{"run": DIRECTORY, "settings": {…}, …}, …], see `Step`

Beside a run's directory come DIRECTORY.RANK.npz, the sequences that the rank read in each update, DIRECTORY.RANK.json,
how it ended and which updates it skipped, and, of a run that was gone on with, DIRECTORY.loaded.NAME.npz: the average
NAME as it was before the first new update.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from rich.console import Console

from launching import run_to_the_end
from lawa.data import order
from lawa.errors import LawaError
from lawa.pretrain import loop, text
from lawa.pretrain import run as runs
from lawa.pretrain.checkpoint import sharded
from lawa.pretrain.config import Config
from lawa.pretrain.scaler import LossScaler
from lawa.pretrain.signals import Stopped
from lawa.settings import build


@dataclass(frozen=True, kw_only=True)
class Step:
    """One run, started or gone on with.

    settings  of a new run; None goes on with it
    changed   settings for going on, taken with --override
    stop      the update in which the last rank alone gets SIGTERM
    overflow  the update in which a gradient overflows: in the last rank's shard alone, or in the same place of each
    """

    run: str
    settings: dict[str, Any] | None = None
    changed: dict[str, Any] | None = None
    stop: int | None = None
    overflow: int | None = None


def go(step: Step) -> None:
    rank, world = (int(os.environ.get(name, alone)) for name, alone in (("RANK", "0"), ("WORLD_SIZE", "1")))
    last = rank == world - 1
    seen: dict[str, np.ndarray] = {}
    skipped: list[int] = []
    one_update, unscale, train = loop.Loop.step, LossScaler.unscale, loop.Loop.train

    def read(tokens: Any, order_: Any, t: int, rows: slice) -> np.ndarray:
        seen[str(t)] = order.batch(tokens, order_, t, rows)
        return seen[str(t)]

    def update(self: loop.Loop, t: int) -> tuple[float, torch.Tensor]:
        if t == step.stop and last:
            os.kill(os.getpid(), signal.SIGTERM)
        result = one_update(self, t)
        if self._skipped:
            skipped.append(t)
        return result

    def loaded(self: loop.Loop) -> dict[str, float]:
        if step.settings is None:
            keep_averages(self, step.run)
        return train(self)

    def overflowing(self: LossScaler, optimizer: torch.optim.Optimizer) -> None:
        if self.update + 1 == step.overflow:
            for parameter in optimizer.param_groups[0]["params"]:
                gradient = parameter.grad
                sharded = hasattr(gradient, "to_local")
                own = gradient.to_local() if sharded else gradient
                if (last or not sharded) and own.numel():
                    own.view(-1)[0] = float("inf")
        unscale(self, optimizer)

    run, quiet = Path(step.run), Console(file=io.StringIO())
    how, sentence = "done", ""
    with (
        mock.patch.object(text, "batch", read),
        mock.patch.object(loop.Loop, "step", update),
        mock.patch.object(loop.Loop, "train", loaded),
        mock.patch.object(LossScaler, "unscale", overflowing),
    ):
        try:
            if step.settings is not None:
                runs.start(build(Config, step.settings), run, console=quiet)
            else:
                runs.resume(run, overrides=step.changed, force=step.changed is not None, console=quiet)
        except Stopped as stopped:
            how, sentence = "stopped", str(stopped)
        except LawaError as error:
            how, sentence = "refused", str(error)
    np.savez(f"{run}.{rank}.npz", **seen)
    Path(f"{run}.{rank}.json").write_text(json.dumps({"how": how, "sentence": sentence, "skipped": skipped}))


def keep_averages(self: loop.Loop, run: str) -> None:
    averager = self.averager
    assert averager is not None
    for name in averager.averages:
        with averager.averaged(name):
            whole = sharded.gather(self.setup.model, main=self.ranks.main)
            if self.ranks.main:
                np.savez(f"{run}.loaded.{name}.npz", **{key: tensor.numpy() for key, tensor in whole.items()})


def main() -> None:
    torch.set_num_threads(1)
    for step in json.loads(Path(sys.argv[1]).read_text()):
        go(Step(**step))


if __name__ == "__main__":
    run_to_the_end(main)
