"""What happens at each of the trainer's events."""

from __future__ import annotations

import json
import logging
import os
import shutil
import warnings
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from lawa.averaging.averager import WeightAverager
from lawa.checkpoints.averager_state import AveragerState
from lawa.checkpoints.publish import begin, complete, hidden, is_published, remove
from lawa.errors import LawaError, NonFiniteAverage
from lawa.integrations.transformers.trainer import AveragingTrainer
from lawa.records import provenance

log = logging.getLogger("lawa")

STATE = "lawa"
AVERAGES = "averages"
SAVED = ("last", "all", "none")
PLACES = ("placement", "host_bytes", "folder", "replicas")  # settings that need the model, and its processes


class LawaCallback(TrainerCallback):
    """Latest weight averaging in a Trainer; `attach` puts it there.

    mode           "evaluate" or "replace"; it has no default
    save_averages  in checkpoint-N/averages/NAME: "last" (default) keeps them in the latest checkpoint and in the best,
                   "all" in every checkpoint, "none" makes none
    settings       the others of WeightAverager: every, window, averages, placement, …

    Raises LawaError for settings that contradict each other.
    """

    def __init__(self, *, mode: str, save_averages: str = "last", **settings: Any) -> None:
        if save_averages not in SAVED:
            raise LawaError(f"save_averages={save_averages!r} must be 'last', 'all' or 'none'")
        self.save_averages = save_averages
        self.settings = {"mode": mode, **settings}
        self._resume: str | None = None  # the checkpoint that this training goes on from
        self._trainer: Trainer | None = None
        self._state: AveragerState | None = None
        _check(self.settings)

    def attach(self, trainer: Trainer) -> LawaCallback:
        """Become the first of the trainer's callbacks, and give its evaluations the averages' metrics; returns itself.

        The trainer's class becomes a subclass of what it was: the Trainer has no hook before an evaluation, before a
        checkpoint is complete, or before the best model is loaded.
        """
        if self._trainer is not None or isinstance(trainer, AveragingTrainer):
            raise LawaError("a LawaCallback and a trainer belong together once; make a new callback for a new trainer")
        _refuse_sharding(trainer, self.save_averages)
        name = self.average_of(trainer.args.metric_for_best_model)
        if trainer.args.load_best_model_at_end and name is not None and self.save_averages == "none":
            raise LawaError(
                f"metric_for_best_model={trainer.args.metric_for_best_model!r} makes the average {name!r} the best "
                "model, and with save_averages='none' there is nothing to load at the end; choose 'last'"
            )
        callbacks = trainer.callback_handler.callbacks
        if self in callbacks:
            callbacks.remove(self)
        callbacks.insert(0, self)  # so the others see the weights as they are after a replacement
        own = type(trainer)
        trainer.__class__ = type(own.__name__, (AveragingTrainer, own), {"__module__": own.__module__})
        cast(AveragingTrainer, trainer).lawa = self
        self._trainer = trainer
        return self

    @property
    def averager(self) -> WeightAverager:
        """That of the training under way, or of the last one."""
        if self._state is None:
            raise LawaError("there is no averager before trainer.train() begins")
        return self._state.averager

    def save_average(self, directory: str | os.PathLike[str], name: str | None = None) -> bool:
        """Publish an average as `directory`, in place of an older one, as the trainer saves models; every rank calls.

        False where the average is not finite: nothing is written then (`strict` raises NonFiniteAverage).
        """
        trainer, averager, directory = self._attached(), self.averager, Path(directory)
        with averager.averaged(name):
            name = name or next(iter(averager.averages))
            if not averager.is_finite(name):
                message = f"update {averager.step}: the average {name!r} is not finite; {directory} was not written"
                if averager.strict:
                    raise NonFiniteAverage(message)
                log.warning(message)
                return False
            if trainer.args.should_save:
                if is_published(directory):
                    remove(directory)
                begin(directory)
            trainer.save_model(str(hidden(directory)), _internal_call=True)
        trainer.accelerator.wait_for_everyone()
        if trainer.args.should_save:
            made = {
                "average": name,
                "kind": str(averager.averages[name]),
                "update": averager.step,
                "snapshots": averager.steps(name) or averager.count(name),
                "accumulate": str(averager.accumulate).removeprefix("torch."),
                **provenance(),
            }
            (hidden(directory) / "provenance.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
            complete(hidden(directory), directory)
        trainer.accelerator.wait_for_everyone()
        return True

    # ---- the trainer's events

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        trainer = self._attached()
        if self._state is not None:
            self._state.averager.close()
            self._state = None  # before the next one needs the memory
        optimizer: Any = trainer.optimizer
        while isinstance(optimizer, AcceleratedOptimizer):
            optimizer = optimizer.optimizer
        model = cast(nn.Module, trainer.model_wrapped)
        self._state = AveragerState(WeightAverager(model, optimizer, **self.settings))
        if self._resume is not None:
            saved = Path(self._resume) / STATE
            if is_published(saved):
                self._state.load(saved)
            else:
                warnings.warn(
                    f"{self._resume} has no state of the averager ({STATE}/): its averages start anew at "
                    f"update {state.global_step}",
                    stacklevel=2,
                )
        self._say_what_never_fills(state)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.averager.replace_if_due()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        skipped = self._attached().accelerator.optimizer_step_was_skipped
        self.averager.capture(state.global_step, skipped=skipped)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.averager.replace_if_due()

    # ---- what the trainer's class asks

    def resume_from(self, checkpoint: str | os.PathLike[str] | bool | None, output: str) -> None:
        """Training begins, and goes on from `checkpoint`; True: the latest in `output`."""
        self._resume = get_last_checkpoint(output) if checkpoint is True else os.fspath(checkpoint or "") or None

    def evaluated(self) -> list[str]:
        """The averages that are ready; none within `averaged`, whose average is being evaluated already."""
        if self._state is None or self.averager.swapped is not None:
            return []
        return [name for name in self.averager.averages if self.averager.ready(name)]

    def published(self, checkpoint: str, name: str) -> Path | None:
        """Where the average `name` of a checkpoint lies, if it does."""
        average = Path(checkpoint) / AVERAGES / name
        return average if is_published(average) else None

    def average_of(self, metric: str | None) -> str | None:
        """The average whose metric this is, as "lawa" of eval_lawa_loss or eval_DATASET_lawa_loss."""
        averages = self.settings.get("averages") or ("lawa",)
        named = [name for name in averages if f"_{name}_" in f"_{(metric or '').removeprefix('eval_')}"]
        return max(named, key=len, default=None)

    def save(self, checkpoint: Path, best: int | None) -> None:
        """What belongs into `checkpoint`; `best` is the update of the best checkpoint so far."""
        trainer = self._attached()
        if self._state is not None and not trainer.args.save_only_model:
            self._state.save(checkpoint / STATE)
        if self.save_averages == "none":
            return
        for name in self.evaluated():
            self.save_average(checkpoint / AVERAGES / name, name)
        if self.save_averages == "last" and trainer.args.should_save:
            kept = {checkpoint.name, f"{PREFIX_CHECKPOINT_DIR}-{best}"}
            for other in checkpoint.parent.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
                if other.name not in kept and (other / AVERAGES).is_dir():
                    times = other.stat()
                    shutil.rmtree(other / AVERAGES)
                    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))  # save_total_limit goes by them

    # ---- inside

    def _attached(self) -> Trainer:
        if self._trainer is None:
            raise LawaError("call LawaCallback(…).attach(trainer) instead of passing it in callbacks=[…]")
        return self._trainer

    def _say_what_never_fills(self, state: TrainerState) -> None:
        lost = 0 if self.averager.step else state.global_step  # a loaded state has what came before
        for name, average in self.averager.averages.items():
            captures = len(average.cadence.updates(state.max_steps)) - len(average.cadence.updates(lost))
            if captures < average.needed:
                warnings.warn(
                    f"the average {name!r} ({average}) needs {average.needed} captures and gets {captures} until the "
                    f"last update, {state.max_steps}: it will never be ready; choose a smaller every, window or "
                    "min_window",
                    stacklevel=2,
                )


def _check(settings: dict[str, Any]) -> None:
    """Raise for settings that no training could have, before there is a model."""
    stand_in = nn.ParameterList([torch.zeros(1)])  # which draws nothing at random
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        WeightAverager(
            stand_in,
            torch.optim.AdamW(stand_in.parameters()),
            **{key: value for key, value in settings.items() if key not in PLACES},
        )


def _refuse_sharding(trainer: Trainer, save_averages: str) -> None:
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        return
    if plugin.fsdp_version == 1:
        raise LawaError("FSDP1's flat parameters are not supported; set fsdp_config={'version': 2}")
    if save_averages != "none" and "FULL_STATE_DICT" not in str(plugin.state_dict_type):
        raise LawaError(
            "the Trainer saves models for from_pretrained only with fsdp_config={'state_dict_type': "
            "'FULL_STATE_DICT'}; set it, or save_averages='none'"
        )
