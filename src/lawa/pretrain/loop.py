"""The main job: pre-train a language model with latest weight averaging.

    lawa train CONFIG.yaml --output RUN      lawa train --resume RUN

Around update t: optimizer step → capture θ_t → evaluate the plain weights and the averages → copy the checkpoint
(of θ_t; a due replacement is pending in it), which is written while training goes on → replacement → next batch.
So a run resumed from the checkpoint carries out the pending replacement first, and has the bits of one never
interrupted. Whatever is drawn at random in an update is drawn from its number, so no generator is saved either.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch.nn.utils import clip_grad_norm_

from lawa.averaging.averager import WeightAverager
from lawa.averaging.layout import full
from lawa.errors import LawaError
from lawa.evaluation.loss import evaluate, token_loss
from lawa.pretrain.checkpoint.checkpoints import Checkpoints
from lawa.pretrain.checkpoint.position import Position
from lawa.pretrain.progress import Progress
from lawa.pretrain.setup import Setup
from lawa.pretrain.signals import Stop, Stopped
from lawa.pretrain.trackers import Trackers
from lawa.records import Records


class Loop:
    """One run, from the update after `position` to its last."""

    def __init__(
        self,
        run: Path,
        setup: Setup,
        records: Records,
        progress: Progress,
        position: Position | None = None,
        *,
        trackers: Trackers | None = None,
        stop: Stop | None = None,
    ) -> None:
        self.run = run
        self.setup = setup
        self.config = setup.config
        self.ranks = setup.ranks
        self.averager = setup.averager
        self.records = records
        self.progress = progress
        self.position = position or Position()
        self.trackers = trackers
        self.stop = stop or Stop()
        self.checkpoints = Checkpoints(run, setup, records)
        sums, self._loss_count = self.position.unlogged  # since the last line of training loss
        if len(sums) != self.ranks.world:  # other processes than wrote them
            sums = [sum(sums), *[0.0] * (self.ranks.world - 1)]
        self._loss_sum = torch.tensor(sums[self.ranks.rank], dtype=torch.float32, device=setup.device)
        self._skipped = False  # whether the loss scaler skipped the last update

    def train(self) -> dict[str, float]:
        """Train to the end and publish the final model; return the last validation losses by name, in nats.

        Raises Stopped where a signal asked for it, with a checkpoint of the last update on disk.
        """
        last = self.config.training.updates
        if 0 < self.position.update == self.config.training.start:
            self.look(evaluating=True, saving=False)  # what it was given
        self.replace()
        for t in range(self.position.update + 1, last + 1):
            self.position.update = t
            self.position.losses = {}
            lr, norm = self.step(t)
            self.capture(t)
            stopping = int(max(self.ranks.each(self.stop.asked)))
            evaluating = t % self.config.evaluation.every == 0 or t == last
            planned = t % self.config.checkpoints.every == 0 or t == last
            saving = planned or bool(stopping)
            if t % self.config.training.log_every == 0 or planned:
                self.log(lr, norm)
            elif saving:
                self.refuse_divergence(self.ranks.total(float(self._loss_sum)), self.norm(norm))
            if evaluating or saving:
                self.look(evaluating=evaluating, saving=saving)
            if saving:
                with self.clock("checkpoints"):
                    self.position.unlogged = self.ranks.each(float(self._loss_sum)), self._loss_count
                    self.checkpoints.save(self.position)
            self.checkpoints.check()
            if stopping and t < last:
                self.checkpoints.wait()
                raise Stopped(stopping, t)
            self.replace()
        with self.clock("checkpoints"):
            self.checkpoints.wait()
        # Last of all comes what says that the run is finished.
        self.write("end", seconds={what: round(spent, 3) for what, spent in self.position.seconds.items()})
        self.checkpoints.save_final()
        return self.position.losses

    def step(self, t: int) -> tuple[float, torch.Tensor]:
        """One optimizer update on batch t; its learning rate and gradient norm."""
        training, setup, scaler = self.config.training, self.setup, self.setup.scaler
        with self.clock("training"):
            torch.manual_seed(_draw(self.config.seed, t, self.ranks.rank))
            lr = training.rate(t)
            for group in setup.optimizer.param_groups:
                group["lr"] = lr
            sequences = setup.text.batch(t, self.ranks.rows)
            parts = torch.from_numpy(sequences).to(setup.device).split(self.ranks.micro_batch)
            for i, part in enumerate(parts, start=1):
                with self.ranks.accumulating(setup.module, last=i == len(parts)):
                    with setup.autocast():
                        loss = token_loss(setup.module, part) / len(parts)
                    (loss if scaler is None else scaler.scale(loss)).backward()
                self._loss_sum += loss.detach()
            if scaler is not None:
                scaler.unscale(setup.optimizer)
            norm = clip_grad_norm_(setup.model.parameters(), training.clip or math.inf)
            if scaler is None:
                setup.optimizer.step()
            else:
                self._skipped = not scaler.step(setup.optimizer)
            setup.optimizer.zero_grad()
        self._loss_count += 1
        return lr, norm

    def capture(self, t: int) -> None:
        """Capture θ_t for every average that is due."""
        if self.averager is None:
            return
        due = any(average.cadence.due(t) for average in self.averager.averages.values())
        with self.clock("averaging") if due else nullcontext():
            self.averager.capture(t, skipped=self._skipped)

    def log(self, lr: float, norm: torch.Tensor) -> None:
        """Write the mean training loss since the last line; where it or the gradient is not finite the run ends."""
        with self.clock("training"):
            total, grad_norm = self.ranks.total(float(self._loss_sum)), self.norm(norm)
            loss = total / self._loss_count / self.ranks.world
            self._loss_sum.zero_()
            self._loss_count = 0
            scaler = self.setup.scaler
            scale = {} if scaler is None else {"loss_scale": scaler.scale_now}
            self.write("train", loss=loss, lr=lr, grad_norm=grad_norm, **scale)
        self.progress.trained(self.position.update, loss)
        self.refuse_divergence(loss, grad_norm)

    def norm(self, gradients: torch.Tensor) -> float | None:
        """The gradient norm; None of an update that the loss scaler skipped."""
        return None if self._skipped else float(full(gradients))

    def refuse_divergence(self, loss: float, grad_norm: float | None) -> None:
        """Raise where these are not finite, before anything is saved: such a gradient has made such weights."""
        for what, value in (("training loss", loss), ("gradient norm", grad_norm)):
            if value is not None and not math.isfinite(value):
                raise LawaError(
                    f"{self.run}: the {what} is {value} at update {self.position.update}; earlier checkpoints are "
                    "whole. Lower training.lr or lengthen training.warmup, and start anew"
                )

    def look(self, *, evaluating: bool, saving: bool) -> None:
        """Evaluate the plain weights and each ready average, and take the averages that are published."""
        averager, losses = self.averager, self.position.losses
        if evaluating:
            losses["plain"] = self.loss()
        for name in averager.averages if averager else ():
            assert averager is not None
            if not averager.ready(name):
                continue
            publishing = saving and self.config.checkpoints.save_averages != "none"
            if not (evaluating or publishing):
                continue
            with averager.averaged(name):
                if evaluating:
                    losses[name] = self.loss()
                if publishing and averager.is_finite(name):
                    with self.clock("checkpoints"):
                        self.checkpoints.save_average(name, self.position)
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
        setup, ranks = self.setup, self.ranks
        with self.clock("evaluation"):
            return evaluate(
                setup.model,
                setup.text.validation,
                batch=self.config.evaluation.batch,
                autocast=setup.autocast(),
                share=(ranks.rank, ranks.world),
                total=ranks.total,
            )

    def write(self, kind: str, **fields: object) -> None:
        if not self.ranks.main:
            return
        t = self.position.update
        told = {"tokens": t * self.config.tokens_per_update, **fields}
        self.records.append(kind, t, **told)
        if self.trackers is not None:
            self.trackers.log(kind, t, told)

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


def _draw(seed: int, t: int, rank: int) -> int:
    """The seed of what update t draws on a rank (dropout): nothing of a generator is carried from update to update."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {t} {rank}".encode(), digest_size=7).digest())


def _counts(averager: WeightAverager | None, losses: dict[str, float]) -> dict[str, int]:
    return {name: averager.count(name) for name in losses if name != "plain"} if averager else {}
