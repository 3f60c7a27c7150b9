"""What averaging costs a training run: the demo's own driver, beside a bare loop of the same model and data.

    python benchmarks/share.py [--quick] [--output FILE]

The demo is trained for fewer updates: as it is, with replacement, and with each batch in parts whose gradients are
added up. Whenever its driver logs, a bare loop (forward, backward, clip, step; no averaging, no records) takes as
many updates on the same batches, on the same clock. So each stretch of updates gives a share, seconds averaging over
seconds training, and a ratio of the driver's seconds to the bare loop's, whose target is 0.95 of its tokens a second.
Two models never lie in memory alike, which alone makes some percent of difference; so there are two passes, and in
the second the bare loop's model is made first. Where training never sees the averages, both loops must have the same
losses: a check that they do the same work.
"""

from __future__ import annotations

import io
import math
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from lawa.pretrain.checkpoint.position import Position
from lawa.pretrain.config import Config, load
from lawa.pretrain.loop import Loop
from lawa.pretrain.progress import Progress
from lawa.pretrain.schedules import learning_rate
from lawa.pretrain.setup import Setup, prepare
from lawa.records import Records, read
from measure import ROOT, Check, Found, Record, Spread, number, over, run
from texts import demo_corpus, small_corpus

TARGET = 0.01
TARGET_LOOP = 1 / 0.95  # of the seconds, for 0.95 of the tokens a second
# This benchmark's name: the arm in configs/demo.yaml, and sequences of a batch that are computed at once (None: all).
ARMS = {"plain": (None, None), "replace": ("slide", None), "accumulate": (None, 2)}
STRETCHES = 5  # a pass that count; those before the window is full do not


def measure(quick: bool) -> list[Found]:
    found: list[Found] = []
    for name, (arm, micro_batch) in ARMS.items():
        with tempfile.TemporaryDirectory() as folder:
            found += measure_arm(name, arm, micro_batch, Path(folder), quick=quick)
    return found


def measure_arm(name: str, arm: str | None, micro_batch: int | None, folder: Path, *, quick: bool) -> list[Found]:
    config, stretch, before = _config(arm, micro_batch, folder, quick=quick)
    passes = [one_pass(config, stretch, folder / order, order) for order in ("driver first", "bare first")]

    def counted(what: str) -> list[float]:
        return [seconds for turns in passes for seconds in getattr(turns, what)[before:]]

    training, averaging, driver, alone = (counted(what) for what in ("training", "averaging", "driver", "bare"))
    whole = sum(turns.end["averaging"] for turns in passes) / sum(turns.end["training"] for turns in passes)
    tokens = stretch * config.tokens_per_update
    rates = [tokens / Spread.of(seconds).median for seconds in (driver, alone)]
    what = ", ".join(str(average) for average in config.averaging.named.values())
    found: list[Found] = [
        Record(
            name=f"share/{name}/averaging",
            question=f"demo, {name} ({what}): seconds averaging / seconds training",
            ratio=over(averaging, training),
            unit="%",
            target=TARGET,
            n=len(training),
            parts={"averaging": Spread.of(averaging), "training": Spread.of(training)},
            note=f"the whole runs' records: {number(whole, '%')}",
        ),
        Record(
            name=f"share/{name}/loop",
            question=f"demo, {name}: the driver / a bare loop of the same model and data",
            ratio=over(driver, alone),
            target=TARGET_LOOP,
            n=len(driver),
            parts={"driver": Spread.of(driver), "bare": Spread.of(alone)},
            note=f"{rates[0]:,.0f} and {rates[1]:,.0f} tokens/s",
        ),
    ]
    if config.averaging.mode == "evaluate":
        losses = [pair for turns in passes for pair in zip(turns.losses, turns.other.losses, strict=True)]
        same = all(math.isclose(ours, bare, rel_tol=1e-4) for ours, bare in losses)
        detail = f"last {losses[-1][0]:.4f} and {losses[-1][1]:.4f}"
        claim = f"demo, {name}: the bare loop has the driver's training losses"
        found.append(Check(name=f"share/{name}/losses", claim=claim, held=same, detail=detail))
    return found


def one_pass(config: Config, stretch: int, folder: Path, order: str) -> Turns:
    """Train once, by turns; `order` says whose model is made first."""
    folder.mkdir()
    made = [prepare(config, folder) for _ in range(2)]
    setup, other = made if order == "driver first" else reversed(made)
    position, records = Position(), Records(folder / "metrics.jsonl")
    turns = Turns(Bare(other), position, stretch)
    turns.began = time.perf_counter()
    Loop(folder, setup, records, turns, position).train()
    turns.end = next(record for record in read(records.path) if record["kind"] == "end")["seconds"]
    return turns


class Turns(Progress):
    """The driver's display, which it tells of every line of training loss: then the bare loop has its turn.

    training, averaging, driver, bare  seconds of every stretch: the driver's own clocks, and this one's
    end                                seconds of the whole run by what they were spent on, as the driver records them
    """

    def __init__(self, bare: Bare, position: Position, stretch: int) -> None:
        super().__init__(updates=1, tokens_per_update=1, console=Console(file=io.StringIO()))
        self.other, self.position, self.stretch = bare, position, stretch
        self.training: list[float] = []
        self.averaging: list[float] = []
        self.driver: list[float] = []
        self.bare: list[float] = []
        self.losses: list[float] = []
        self.end: dict[str, float] = {}
        self.began = 0.0
        self._before = dict(position.seconds)

    def trained(self, t: int, loss: float) -> None:
        self.driver.append(time.perf_counter() - self.began)
        now = dict(self.position.seconds)
        self.training.append(now["training"] - self._before["training"])
        self.averaging.append(now["averaging"] - self._before["averaging"])
        self.losses.append(loss)
        began = time.perf_counter()
        self.other.train(self.stretch)
        self.bare.append(time.perf_counter() - began)
        self._before = now
        self.began = time.perf_counter()

    def evaluated(self, t: int, losses: object) -> None:
        """Only after the last update."""

    def replaced(self, t: int, name: str, *, applied: bool, loss: float | None) -> None:
        assert applied, f"the replacement at update {t} was skipped"


@dataclass
class Bare:
    """The shortest loop that trains the same model on the same batches."""

    setup: Setup
    t: int = 0
    losses: list[float] = field(default_factory=list)

    def train(self, updates: int) -> None:
        setup, training = self.setup, self.setup.config.training
        model, optimizer = setup.model, setup.optimizer
        total = torch.zeros((), device=setup.device)
        for _ in range(updates):
            self.t += 1
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(
                    self.t, schedule=training.schedule, lr=training.lr, min_lr=training.min_lr,
                    updates=training.updates, warmup=training.warmup,
                )  # fmt: skip
            tokens = torch.from_numpy(setup.text.batch(self.t, None)).to(setup.device)
            parts = tokens.split(training.micro_batch or training.batch)
            for part in parts:
                logits = model(input_ids=part[:, :-1]).logits
                loss = cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten()) / len(parts)
                loss.backward()
                total += loss.detach()
            clip_grad_norm_(model.parameters(), training.clip or math.inf)
            optimizer.step()
            optimizer.zero_grad()
        self.losses.append(float(total) / updates)


def _config(arm: str | None, micro_batch: int | None, folder: Path, *, quick: bool) -> tuple[Config, int, int]:
    """The demo's configuration for fewer updates; the updates of a stretch, and how many stretches come before."""
    overrides: dict[str, Any] = {}
    if quick:
        overrides = {
            "model": {"overrides": {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 64}},
            "data": {"train": [str(small_corpus(folder))], "vocab_size": 300, "context": 16},
        }
    full = load(ROOT / "configs" / "demo.yaml", arm=arm)
    averages = full.averaging.named.values()
    stretch = max(average.cadence.every for average in averages)  # every average has captured in each
    filled = max(average.cadence.nth(average.needed) or 0 for average in averages)  # a run must have all its averages
    before = max(-(-filled // stretch), 2)
    updates = (before + (2 if quick else STRETCHES)) * stretch
    data = overrides.get("data") or {"train": [str(demo_corpus())]}
    store = folder / "store" if quick else ROOT / ".demo" / "store"
    overrides |= {
        "data": {**data, "store": str(store)},
        "training": {
            "updates": updates, "schedule": "constant", "decay": None, "log_every": stretch,
            "device": "cpu", "precision": "fp32", "micro_batch": micro_batch,
        },
        "evaluation": {"every": updates, "sequences": 8},
        "checkpoints": {"every": updates, "save_averages": "none"},
    }  # fmt: skip
    return load(ROOT / "configs" / "demo.yaml", arm=arm, overrides=overrides), stretch, before


if __name__ == "__main__":
    run("share", __doc__ or "", measure)
