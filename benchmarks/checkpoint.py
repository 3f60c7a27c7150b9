"""How long a checkpoint holds training up, against a copy of what it saves, and what its writing costs meanwhile.

    python benchmarks/checkpoint.py [--quick] [--output FILE]

The driver's own run in its steady state: weights, AdamW's moments and a full window, with a snapshot that is new to
every checkpoint. Training waits for save(), measured when the checkpoint before has long been written; the limit is
`torch._foreach_copy_` of the same tensors into host memory that is in use. The rest happens behind training, and is
shown beside it: how long until the checkpoint is on disk, which is what a driver waits for that writes in the
foreground, and an update while that goes on against one alone. Every contender takes an update first, so that none
finds the state in the cache.
"""

from __future__ import annotations

import io
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

import models
from lawa.averaging.layout import local
from lawa.checkpoints.publish import verify
from lawa.errors import LawaError
from lawa.pretrain.checkpoint.staging import optimizer_state
from lawa.pretrain.config import Config
from lawa.pretrain.directory import TRAINING, latest
from lawa.pretrain.loop import Loop
from lawa.pretrain.progress import Progress
from lawa.pretrain.setup import prepare
from lawa.records import Records
from lawa.settings import build
from measure import Check, Found, Record, Spread, alternate, milliseconds, number, over, run
from texts import small_corpus

TARGET = 1.5
WINDOW = 10  # of it one snapshot is new in every checkpoint
SETTLE = 0.05  # seconds before anything short is timed, for torch's threads go on spinning after an update
SMALL = {"preset": "gpt2-small", "overrides": {"vocab_size": 50257}}
DEMO = {"preset": "pythia-14m", "overrides": {"num_hidden_layers": 4, "vocab_size": 2048}}
TINY = {"preset": "pythia-14m", "overrides": {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 64}}


def measure(quick: bool) -> list[Found]:
    if quick:
        return [*measure_run("tiny", TINY, "none", rounds=2), *measure_run("tiny", TINY, "fsdp2", rounds=2)]
    return [
        *measure_run("GPT-2 small", SMALL, "none", rounds=7),
        *measure_run("GPT-2 small", SMALL, "fsdp2", rounds=7),
        # Here the copy takes less than the files that are looked at and the thread that is started.
        *measure_run("demo", DEMO, "none", rounds=9, target=None),
    ]


def measure_run(
    model: str, settings: Mapping[str, Any], sharding: str, *, rounds: int, target: float | None = TARGET
) -> list[Found]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with steady(_config(folder, settings, sharding), folder / "run") as one:
            contenders = {"copy": one.copy, "save": one.save, "alone": one.alone, "behind": one.behind}
            took = alternate(contenders, rounds=rounds)
            what = f"{model} ({models.size(one.loop.setup.model)}), {one.format}"
            whole = _whole(one.loop)
        size = sum(tensor.nbytes for tensor in one.state) / 1e6
    copy, stall, written = Spread.of(took["copy"]), Spread.of(one.stalls[-rounds:]), Spread.of(took["save"])
    alone, behind = Spread.of(took["alone"]), Spread.of(took["behind"])
    prefix = f"checkpoint/{model.replace(' ', '-').lower()}/{one.format}"
    return [
        Record(
            name=f"{prefix}/stall",
            question=f"{what}: training waits for a checkpoint / a copy of its state",
            ratio=over(stall.values, copy.values),
            target=target,
            n=rounds,
            parts={"stall": stall, "copy": copy},
            note=f"{milliseconds(stall)} / {milliseconds(copy)}, {number(size, '×')} MB",
        ),
        Record(
            name=f"{prefix}/written",
            question=f"{what}: until it is on disk, as a driver waits that writes in the foreground / the same copy",
            ratio=over(written.values, copy.values),
            target=None,
            n=rounds,
            parts={"written": written, "copy": copy},
            note=milliseconds(written),
        ),
        Record(
            name=f"{prefix}/update",
            question=f"{what}: an update while a checkpoint is written / an update alone",
            ratio=over(behind.values, alone.values),
            target=None,
            n=rounds,
            parts={"behind": behind, "alone": alone},
            note=f"{milliseconds(behind)} / {milliseconds(alone)}",
        ),
        Check(name=f"{prefix}/whole", claim=f"{what}: the last checkpoint is whole", held=not whole, detail=whole),
    ]


class Steady:
    """A run whose updates and checkpoints are made one by one.

    format  of its checkpoints
    state   what each saves, every tensor once
    stalls  seconds of every save()
    """

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.format = "dcp" if loop.ranks.sharded else "hf"
        self.stalls: list[float] = []
        for _ in range(WINDOW):
            self.save()
        self.state = _state(loop)
        self._copies = [torch.zeros_like(tensor) for tensor in self.state]

    def copy(self) -> float:
        """Seconds of a copy of all that a checkpoint saves."""
        self._update()
        time.sleep(SETTLE)
        with torch.no_grad():
            began = time.perf_counter()
            torch._foreach_copy_(self._copies, self.state)
            return time.perf_counter() - began

    def save(self) -> float:
        """Seconds until a checkpoint is on disk, when nothing else is done; what training waits for goes to stalls."""
        self._update()
        self._capture()
        time.sleep(SETTLE)
        began = time.perf_counter()
        self.loop.checkpoints.save(self.loop.position)
        self.stalls.append(time.perf_counter() - began)
        self.loop.checkpoints.wait()
        return time.perf_counter() - began

    def alone(self) -> float:
        """Seconds of an update, the mean of those that fill half a second."""
        seconds = [self._update()]
        while sum(seconds) < 0.5:
            seconds.append(self._update())
        return sum(seconds) / len(seconds)

    def behind(self) -> float:
        """Seconds of an update, the mean of those that begin while a checkpoint is being written."""
        self._capture()
        self.loop.checkpoints.save(self.loop.position)
        seconds = [self._update()]
        while any(thread.name == "lawa-writer" for thread in threading.enumerate()):
            seconds.append(self._update())
        self.loop.checkpoints.wait()
        return sum(seconds) / len(seconds)

    def _update(self) -> float:
        began = time.perf_counter()
        self.loop.step(1)
        return time.perf_counter() - began

    def _capture(self) -> None:
        """Counts for the window and the checkpoint as an update of its own."""
        self.loop.position.update += 1
        self.loop.capture(self.loop.position.update)


@contextmanager
def steady(config: Config, folder: Path) -> Iterator[Steady]:
    folder.mkdir()
    setup = prepare(config, folder)
    try:
        display = Progress(updates=1, tokens_per_update=1, console=Console(file=io.StringIO()))
        yield Steady(Loop(folder, setup, Records(folder / "metrics.jsonl"), display))
    finally:
        setup.ranks.close()


def _state(loop: Loop) -> list[Tensor]:
    """The weights, what AdamW has of them, and one snapshot."""
    setup = loop.setup
    assert setup.averager is not None
    snapshot = next(iter(setup.averager.state_dict()["snapshots"].values()))
    saved = (setup.model.state_dict(), optimizer_state(setup.model, setup.optimizer), snapshot)
    tensors = [local(tensor) for part in saved for tensor in part.values()]
    return list({tensor.data_ptr(): tensor for tensor in tensors}.values())  # tied ones once


def _whole(loop: Loop) -> str:
    """What is wrong with the last checkpoint, if anything is."""
    found = latest(loop.run)
    if found is None or found[0] != loop.position.update:
        return f"there is none of update {loop.position.update}"
    try:
        verify(found[1])
        verify(found[1] / TRAINING)
    except LawaError as damaged:
        return str(damaged)
    return ""


def _config(folder: Path, model: Mapping[str, Any], sharding: str) -> Config:
    """Short sequences, so that updates are short beside a checkpoint of GPT-2 small and some fall into its writing."""
    return build(
        Config,
        {
            "model": dict(model),
            "data": {"train": [str(small_corpus(folder))], "vocab_size": 300, "context": 64},
            "training": {"updates": 1000, "batch": 1, "lr": 1e-4, "device": "cpu", "sharding": sharding},
            "averaging": {"window": WINDOW, "every": 1},
            "checkpoints": {"every": 1, "keep": 2},
        },
    )


if __name__ == "__main__":
    run("checkpoint", __doc__ or "", measure)
