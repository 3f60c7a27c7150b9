"""LAWA on a DeepSpeed engine: one more line after deepspeed.initialize.

    engine, *_ = deepspeed.initialize(model=model, ...)
    averager = WeightAverager(engine, mode="evaluate", every=1000, window=5)
    attach(engine, averager)

    last micro-batch's engine.step() → capture → replacement, if one is due
    engine.save_checkpoint(DIR, TAG) → DeepSpeed's files, and the averager's state in DIR/TAG/lawa
    engine.load_checkpoint(DIR, TAG) → both again

t is engine.global_steps: a step that the loss scaler skipped counts, and its capture is marked.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from lawa.averaging.attachment import Attachment
from lawa.averaging.averager import WeightAverager
from lawa.checkpoints.averager_state import AveragerState
from lawa.checkpoints.together import from_first
from lawa.errors import LawaError

FOLDER = "lawa"  # of the averager's state in a checkpoint's directory


class EngineAttachment(Attachment):
    """The handle of `attach`; remove() gives the engine its own methods back. Every rank has one."""

    def __init__(self, engine: Any, averager: WeightAverager) -> None:
        if hasattr(engine, "train_batch"):
            raise LawaError(
                f"{type(engine).__name__} steps inside train_batch(); call "
                "averager.update(step=engine.global_steps) after it, and save(…) of one AveragerState(averager) at "
                "checkpoints"
            )
        if isinstance(getattr(engine.step, "__self__", None), EngineAttachment):
            raise LawaError(
                "an averager is attached to the engine already, and its checkpoints hold one state; remove() the first "
                "handle, or ask one averager for several averages: averages={name: …}"
            )
        averager.attached_to(self)
        super().__init__([], None, lambda skipped: None)  # no optimizer is asked: the engine is
        self.engine = engine
        self.averager = averager
        self._state = AveragerState(averager)
        self._own = {name: getattr(engine, name) for name in ("step", "save_checkpoint", "load_checkpoint")}
        engine.step, engine.save_checkpoint, engine.load_checkpoint = self._step, self._save, self._load

    def remove(self) -> None:
        if self.attached:
            for name in self._own:
                delattr(self.engine, name)  # its class's again
        super().remove()

    def _step(self, *args: Any, **kwargs: Any) -> None:
        before = self.engine.global_steps
        self._own["step"](*args, **kwargs)
        if self.engine.global_steps != before:  # not while gradients accumulate
            self.averager.capture(self.engine.global_steps, skipped=not self.engine.was_step_applied())
            self.averager.replace_if_due()

    def _save(self, save_dir: str, tag: Any = None, *args: Any, **kwargs: Any) -> Any:
        tag = f"global_step{self.engine.global_steps}" if tag is None else tag
        done = self._own["save_checkpoint"](save_dir, tag, *args, **kwargs)
        if self.averager.swapped is None:  # an average is exported, and nothing goes on from it
            self._state.save(Path(save_dir) / str(tag) / FOLDER)
        return done

    def _load(self, *args: Any, load_module_only: bool = False, **kwargs: Any) -> tuple[Any, Any]:
        path, client_state = self._own["load_checkpoint"](*args, load_module_only=load_module_only, **kwargs)
        if path is None or load_module_only:
            return path, client_state
        state = Path(path).parent / FOLDER
        if from_first(state.exists):
            self._state.load(state)
        else:
            self.averager.restart(self.engine.global_steps)
            warnings.warn(
                f"{state.parent} has no state of the averager ({FOLDER}/): its averages start anew at update "
                f"{self.averager.step}",
                stacklevel=2,
            )
        return path, client_state


def attach(engine: Any, averager: WeightAverager) -> EngineAttachment:
    """Update at every global step of the engine, and keep the averager's state in its checkpoints.

    An engine has one averager, and no update() is called by hand. A checkpoint without the averager's state is loaded
    with a warning: its averages start anew.

    Within `averager.averaged()`, engine.save_checkpoint writes the average in the weights' place, for DeepSpeed's
    converters (zero_to_fp32, ds_to_universal) to read.
    """
    return EngineAttachment(engine, averager)
