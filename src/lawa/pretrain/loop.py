"""The main job: pre-train a language model with latest weight averaging.

    lawa train CONFIG.yaml --output RUN      lawa train --resume RUN

Around update t: optimizer step → capture θ_t → evaluate the plain weights and the averages → save the
checkpoint (of θ_t; a due replacement is pending in it) → replacement → next batch. So a run resumed from
the checkpoint carries out the pending replacement first, and has the bits of one never interrupted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch.nn.utils import clip_grad_norm_

from lawa.averaging.averager import WeightAverager
from lawa.data.order import batch
from lawa.errors import LawaError
from lawa.evaluation.loss import evaluate, token_loss
from lawa.pretrain import checkpoint
from lawa.pretrain.progress import Progress
from lawa.pretrain.schedules import learning_rate
from lawa.pretrain.setup import Setup
from lawa.records import Records


class Loop:
    """One run, from the update after `position` to its last."""

    def __init__(
        self, run: Path, setup: Setup, records: Records, progress: Progress, position: checkpoint.Position | None = None
    ) -> None:
        self.run = run
        self.setup = setup
        self.config = setup.config
        self.averager = setup.averager
        self.records = records
        self.progress = progress
        self.position = position or checkpoint.Position()
        self._loss_sum = torch.zeros((), device=setup.device)  # since the last line of training loss
        self._loss_count = 0

    def train(self) -> dict[str, float]:
        """Train to the end and publish the final model; return the last validation losses by name, in nats."""
        last = self.config.training.updates
        self.replace()
        for t in range(self.position.update + 1, last + 1):
            self.position.update = t
            self.position.losses = {}
            evaluating = t % self.config.evaluation.every == 0 or t == last
            saving = t % self.config.checkpoints.every == 0 or t == last
            lr, norm = self.step(t)
            if self.averager is not None:
                due = any(average.cadence.due(t) for average in self.averager.averages.values())
                with self.clock("averaging") if due else nullcontext():
                    self.averager.capture(t)
            if t % self.config.training.log_every == 0 or saving:
                self.log(lr, norm)
            if evaluating or saving:
                self.look(evaluating=evaluating, saving=saving)
            if saving:
                with self.clock("checkpoints"):
                    checkpoint.save(self.run, self.setup, self.records, self.position)
            self.replace()
        # Last of all comes what says that the run is finished.
        self.write("end", seconds={what: round(spent, 3) for what, spent in self.position.seconds.items()})
        checkpoint.save_final(self.run, self.setup)
        return self.position.losses

    def step(self, t: int) -> tuple[float, torch.Tensor]:
        """One optimizer update on batch t; its learning rate and gradient norm."""
        training, setup = self.config.training, self.setup
        with self.clock("training"):
            lr = learning_rate(
                t,
                schedule=training.schedule,
                lr=training.lr,
                min_lr=training.min_lr,
                updates=training.updates,
                warmup=training.warmup,
                decay=training.decay_updates,
            )
            for group in setup.optimizer.param_groups:
                group["lr"] = lr
            sequences = torch.from_numpy(batch(setup.store.train, setup.order, t)).to(setup.device)
            parts = sequences.split(training.micro_batch or training.batch)
            for part in parts:
                with setup.autocast():
                    loss = token_loss(setup.model, part) / len(parts)
                loss.backward()
                self._loss_sum += loss.detach()
            norm = clip_grad_norm_(setup.model.parameters(), training.clip or math.inf)
            setup.optimizer.step()
            setup.optimizer.zero_grad()
        self._loss_count += 1
        return lr, norm

    def log(self, lr: float, norm: torch.Tensor) -> None:
        """Write the mean training loss since the last line; where it or the gradient is not finite the run ends.

        Logged before anything is saved: a gradient that is not finite has made weights that are not.
        """
        with self.clock("training"):
            loss, grad_norm = float(self._loss_sum) / self._loss_count, float(norm)
            self._loss_sum.zero_()
            self._loss_count = 0
            self.write("train", loss=loss, lr=lr, grad_norm=grad_norm)
        self.progress.trained(self.position.update, loss)
        for what, value in (("training loss", loss), ("gradient norm", grad_norm)):
            if not math.isfinite(value):
                raise LawaError(
                    f"{self.run}: the {what} is {value} at update {self.position.update}; earlier checkpoints are "
                    "whole. Lower training.lr or lengthen training.warmup, and start anew"
                )

    def look(self, *, evaluating: bool, saving: bool) -> None:
        """Evaluate the plain weights and each ready average, and publish the averages; each is put in place once."""
        averager, losses = self.averager, self.position.losses
        if evaluating:
            losses["plain"] = self.loss()
        for name in averager.averages if averager else ():
            assert averager is not None
            if not averager.ready(name):
                continue
            publishing = saving and self.config.checkpoints.save_averages != "none" and averager.is_finite(name)
            if not (evaluating or publishing):
                continue
            with averager.averaged(name):
                if evaluating:
                    losses[name] = self.loss()
                if publishing:
                    with self.clock("checkpoints"):
                        checkpoint.save_average(self.run, self.setup, name, self.position)
        if evaluating:
            self.write("evaluation", losses=losses, snapshots=_counts(averager, losses))
            self.progress.evaluated(self.position.update, losses)

    def replace(self) -> None:
        """Carry out a pending replacement."""
        averager, losses = self.averager, self.position.losses
        if averager is None or averager.replacement is None or not averager.replacement_pending:
            return
        name = averager.replacement.name
        count = averager.count(name)
        with self.clock("averaging"):
            applied = averager.replace_if_due()
        loss = None
        if applied and losses:
            # At strength 1 the weights now are the average that was just evaluated.
            loss = losses[name] if averager.replacement.strength == 1 and name in losses else self.loss()
            losses["replaced"] = loss
        self.write("replacement", name=name, snapshots=count, applied=applied, loss=loss)
        self.progress.replaced(self.position.update, name, applied=applied, loss=loss)

    def loss(self) -> float:
        """The validation loss of the weights that the model has now."""
        setup = self.setup
        with self.clock("evaluation"):
            return evaluate(
                setup.model, setup.validation, batch=self.config.evaluation.batch, autocast=setup.autocast()
            )

    def write(self, kind: str, **fields: object) -> None:
        t = self.position.update
        self.records.append(kind, t, tokens=t * self.config.tokens_per_update, **fields)

    @contextmanager
    def clock(self, what: str) -> Iterator[None]:
        """Add the block's seconds to what they were spent on; what a GPU still had to train, to training."""
        seconds, began = self.position.seconds, time.perf_counter()
        if what != "training":
            self.wait()
            entered = time.perf_counter()
            seconds["training"] += entered - began
            began = entered
        yield
        if what != "training":
            self.wait()
        seconds[what] += time.perf_counter() - began

    def wait(self) -> None:
        """Until a GPU has done what it was given; of its streams this one alone, so copies to the host go on."""
        if self.setup.device.type == "cuda":
            torch.cuda.current_stream(self.setup.device).synchronize()


def _counts(averager: WeightAverager | None, losses: dict[str, float]) -> dict[str, int]:
    return {name: averager.count(name) for name in losses if name != "plain"} if averager else {}
