"""What the Trainer has no hooks for: an evaluation's averages, a checkpoint's folders, the best model."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput

if TYPE_CHECKING:
    from lawa.integrations.transformers.callback import LawaCallback

log = logging.getLogger("lawa")


class AveragingTrainer(Trainer):
    """What the Trainer has no hooks for; `attach` puts this class before the trainer's own."""

    lawa: LawaCallback

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        self.lawa.resume_from(resume_from_checkpoint, cast(str, self.args.output_dir))
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        loop, drawn = super().evaluation_loop, torch.get_rng_state()

        def evaluate(prefix: str) -> EvalLoopOutput:
            return loop(dataloader, description, prediction_loss_only, ignore_keys, prefix)

        output = evaluate(metric_key_prefix)
        if description == "Prediction":
            return output
        assert output.metrics is not None  # only the loop of predictions has none
        for name in self.lawa.evaluated():
            prefix = f"{metric_key_prefix}_{name}"
            with self.lawa.averager.averaged(name), _same_draws(drawn), _recorded(self, prefix) as recorded:
                metrics = evaluate(prefix).metrics or {}
            metrics.pop(f"{prefix}_model_preparation_time", None)
            output.metrics.update(metrics | recorded)
        return output

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        metric = f"eval_{(self.args.metric_for_best_model or '').removeprefix('eval_')}"
        name = self.lawa.average_of(metric)
        if name is not None and metric not in metrics and not self.lawa.averager.ready(name):
            return False
        return super()._determine_best_metric(metrics, trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # First, so that a checkpoint with a trainer's state has the averager's, and what is pushed from it is there.
        checkpoint = Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        self.lawa.save(checkpoint, self.state.best_global_step)
        super()._save_checkpoint(model, trial)

    def _load_best_model(self) -> None:
        self.lawa.averager.replace_if_due()
        best, name = self.state.best_model_checkpoint, self.lawa.average_of(self.args.metric_for_best_model)
        if best is None or name is None:
            return super()._load_best_model()
        average = self.lawa.published(best, name)
        if average is None or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            log.warning("the best model is the average %r of %s; its own weights are loaded instead", name, best)
            return super()._load_best_model()
        self.state.best_model_checkpoint = str(average)
        try:
            return super()._load_best_model()
        finally:
            self.state.best_model_checkpoint = best


@contextmanager
def _same_draws(state: torch.Tensor) -> Iterator[None]:
    """What torch draws in the block it draws from `state`, and what comes after as if the block had not been."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.set_rng_state(state)
        yield


@contextmanager
def _recorded(trainer: Trainer, prefix: str) -> Iterator[dict[str, float]]:
    """The metrics that TRL's trainers record beside the loop's and add when they log, of this block alone."""
    found: dict[str, float] = {}
    records = getattr(trainer, "_metrics", None)
    if not (isinstance(records, dict) and "eval" in records):
        yield found
        return
    kept, records["eval"] = records["eval"], defaultdict(list)
    try:
        yield found
        found.update({f"{prefix}_{key}": sum(values) / len(values) for key, values in records["eval"].items()})
    finally:
        records["eval"] = kept
