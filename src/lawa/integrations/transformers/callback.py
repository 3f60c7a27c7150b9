"""What happens at each of the trainer's events."""

from __future__ import annotations

import json
import logging
import os
import shutil
import warnings
from pathlib import Path
from typing import Any, cast

from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from lawa.averaging.averager import WeightAverager
from lawa.averaging.foresight import check_settings, warn_what_is_never_ready
from lawa.checkpoints.averager_state import AveragerState
from lawa.checkpoints.carry import PROVENANCE
from lawa.checkpoints.publish import begin, complete, hidden, is_published
from lawa.checkpoints.save_average import provenance_of
from lawa.checkpoints.together import from_first, on_all
from lawa.errors import LawaError, NonFiniteAverage
from lawa.integrations.transformers.trainer import AveragingTrainer

log = logging.getLogger("lawa")

STATE = "lawa"
AVERAGES = "averages"
SAVED = ("last", "all", "none")


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
        check_settings(self.settings)

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

    def save_average(self, directory: str | os.PathLike[str], name: str | None = None) -> Path:
        """Publish the average `name` as the model directory `directory`, as the trainer saves models; its path.

        Every rank calls. The average is that of what is held: of fewer snapshots where the window is not full yet.
        An older average at `directory` stays until this one is whole.

        Raises LawaError where the average holds nothing or something else is at `directory`, and NonFiniteAverage for
        an inf or nan: on every rank, and what was there is there as before.
        """
        trainer, averager, directory = self._attached(), self.averager, Path(directory)
        writes, partial = trainer.args.should_save, hidden(_next_to(directory))
        with averager.averaged(name) as model:
            own = name or next(iter(averager.averages))
            if not averager.is_finite(own):
                raise NonFiniteAverage(
                    f"update {averager.step}: the average {own!r} is not finite; {directory} was not written"
                )
            made = provenance_of(averager, own, dict(model.named_parameters()), None)
            on_all(lambda: _begin(directory) if writes else None)
            try:
                on_all(lambda: trainer.save_model(str(partial), _internal_call=True))
                on_all(lambda: _finish(partial, directory, made) if writes else None)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
        return directory

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
            if from_first(saved.exists):
                self._state.load(saved)
            else:
                warnings.warn(
                    f"{self._resume} has no state of the averager ({STATE}/): its averages start anew at "
                    f"update {state.global_step}",
                    stacklevel=2,
                )
        warn_what_is_never_ready(self.averager, after=state.global_step, last=state.max_steps)

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
            try:
                self.save_average(checkpoint / AVERAGES / name, name)
            except NonFiniteAverage as found:
                if self.averager.strict:
                    raise
                log.warning("%s", found)
        if self.save_averages == "last":
            kept = {checkpoint.name, f"{PREFIX_CHECKPOINT_DIR}-{best}"}
            on_all(lambda: _thin(checkpoint.parent, kept) if trainer.args.should_save else None)

    # ---- inside

    def _attached(self) -> Trainer:
        if self._trainer is None:
            raise LawaError("call LawaCallback(…).attach(trainer) instead of passing it in callbacks=[…]")
        return self._trainer


def _next_to(directory: Path) -> Path:
    """Where an average is written that is to take the place of `directory`."""
    return directory.with_name(f"{directory.name}.next")


def _begin(directory: Path) -> None:
    if directory.exists() and not is_published(directory):
        raise LawaError(f"{directory} is there, and no average of LAWA's; remove it or choose another place")
    begin(_next_to(directory))


def _finish(partial: Path, directory: Path, made: dict[str, Any]) -> None:
    (partial / PROVENANCE).write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    older = hidden(directory)
    shutil.rmtree(older, ignore_errors=True)
    complete(partial, directory, aside=older)
    shutil.rmtree(older, ignore_errors=True)


def _thin(output: Path, kept: set[str]) -> None:
    """Remove the averages of the checkpoints in `output`, but of those in `kept`."""
    for checkpoint in output.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if checkpoint.name not in kept and (checkpoint / AVERAGES).is_dir():
            times = checkpoint.stat()
            shutil.rmtree(checkpoint / AVERAGES)
            os.utime(checkpoint, ns=(times.st_atime_ns, times.st_mtime_ns))  # save_total_limit goes by them


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
