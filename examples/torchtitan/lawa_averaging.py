"""The averager in torchtitan's trainer: what happens at which moment, in terms of the attributes a trainer has.

    trainer.model_parts, .optimizers, .checkpointer (its states, maybe_wait_for_staging), .step, .config.training.steps

The averager is one of the checkpointer's Stateful states, "lawa": snapshots go with torch DCP, sharded as the model is,
and a run goes on in the middle of a window on another number of GPUs. lawa_trainer.py puts this into torchtitan.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lawa import LawaError, WeightAverager

STATE = "lawa"


class Averaging:
    """One for a trainer, made when its model, optimizers and checkpointer are. `settings` of WeightAverager."""

    def __init__(self, trainer: Any, **settings: Any) -> None:
        if len(trainer.model_parts) > 1:
            raise LawaError("several pipeline stages on a rank are not supported; use one (pipeline schedule 1F1B)")
        self.trainer = trainer
        self.averager = WeightAverager(trainer.model_parts[0], list(trainer.optimizers), **settings)
        if trainer.checkpointer.enable:
            trainer.checkpointer.states[STATE] = self.averager

    def before_step(self) -> None:
        """A replacement that fell due at the last step; the checkpoint in between has θ_t, and that it is pending."""
        if self.averager.replacement_pending:
            self.trainer.checkpointer.maybe_wait_for_staging()  # which may still read the weights
            self.averager.replace_if_due()

    def after_step(self) -> None:
        self.averager.capture(self.trainer.step)
        if self.trainer.step == self.trainer.config.training.steps:
            self.before_step()  # no step follows; the last checkpoint has what training delivers

    def before_load(self, states: dict[str, Any], checkpoint: str) -> None:
        """DCP loads in place: make room for what the checkpoint holds."""
        if states.get(STATE) is self.averager:
            self.averager.prepare_to_load(checkpoint, key=STATE)

    def validate(self, validate: Callable[[str], None]) -> None:
        """Validation with each average that has what it needs in the model's place, by its name."""
        for name in self.averager.averages:
            if self.averager.ready(name):
                with self.averager.averaged(name):
                    validate(name)
