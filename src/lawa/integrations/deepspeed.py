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
from typing import Any, Self

from lawa.averaging.averager import WeightAverager
from lawa.checkpoints.averager_state import AveragerState
from lawa.errors import LawaError

FOLDER = "lawa"  # of the averager's state in a checkpoint's directory


class Attachment:
    """The handle of `attach`; remove() gives the engine its own methods back. Every rank has one."""

    def __init__(self, engine: Any, averager: WeightAverager) -> None:
        if hasattr(engine, "train_batch"):
            raise LawaError(
                f"{type(engine).__name__} steps inside train_batch(); call "
                "averager.update(step=engine.global_steps) after it, and AveragerState(averager).save(…) at checkpoints"
            )
        self.engine = engine
        self.averager = averager
        self._state = AveragerState(averager)
        self._own = {name: getattr(engine, name) for name in ("step", "save_checkpoint", "load_checkpoint")}
        engine.step, engine.save_checkpoint, engine.load_checkpoint = self._step, self._save, self._load

    def remove(self) -> None:
        while self._own:
            delattr(self.engine, self._own.popitem()[0])  # its class's again

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _step(self, *args: Any, **kwargs: Any) -> None:
        before = self.engine.global_steps
        self._own["step"](*args, **kwargs)
        if self.engine.global_steps != before:  # not while gradients accumulate
            self.averager.update(self.engine.global_steps, skipped=not self.engine.was_step_applied())

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
        if not state.exists():
            warnings.warn(f"{state.parent} holds no averager's state: its averages start anew", stacklevel=2)
            return path, client_state
        self._state.load(state)
        return path, client_state


def attach(engine: Any, averager: WeightAverager) -> Attachment:
    """Update at every global step of the engine, and keep the averager's state in its checkpoints.

    Within `averager.averaged()`, engine.save_checkpoint writes the average in the weights' place, for DeepSpeed's
    converters (zero_to_fp32, ds_to_universal) to read.
    """
    return Attachment(engine, averager)
