"""LAWA in a loop that Accelerate prepared: the averager that knows its accelerator.

    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    averager = AcceleratedAverager(accelerator, model, optimizer, mode="replace", every=1000, window=10)
    for batch in loader:
        with accelerator.accumulate(model):
            accelerator.backward(loss_of(model, batch)); optimizer.step(); optimizer.zero_grad()
            averager.update()

accelerator.save_state and load_state carry its state in DIRECTORY/lawa, by their pre-hooks. (What is registered for
checkpointing goes through pickles, unsharded, and the loading of those allows any code.)
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
from torch import nn

from lawa.averaging.averager import WeightAverager
from lawa.checkpoints.averager_state import AveragerState
from lawa.checkpoints.together import from_first
from lawa.errors import LawaError, require

try:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer
except ModuleNotFoundError:
    require("accelerate", extra="accelerate")
    raise

FOLDER = "lawa"  # of the averager's state in what save_state writes

_taken: WeakSet[Accelerator] = WeakSet()  # by an averager that was not closed


class AcceleratedAverager(WeightAverager):
    """A WeightAverager for what `accelerator.prepare` gave; every process makes one.

    model, optimizer  as they came from `prepare`; several optimizers as a list
    settings          of WeightAverager

    `update()` and `capture()` may be called for every batch: they count where the optimizer stepped
    (`accelerator.sync_gradients`), and mark what the loss scaler skipped (`accelerator.optimizer_step_was_skipped`).
    An accelerator has one AcceleratedAverager until that is closed; several averages are `averages={name: …}`.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None = None,
        **settings: Any,
    ) -> None:
        if accelerator in _taken:
            raise LawaError(
                "the accelerator has an averager already, and save_state writes the state of one; close() the first, "
                "or ask it for several averages: averages={name: …}"
            )
        several = optimizer if isinstance(optimizer, Iterable) else [optimizer]
        super().__init__(model, [_own(one) for one in several if one is not None], **settings)
        self.accelerator = accelerator
        self._state = AveragerState(self)
        self._hooks = [
            accelerator.register_save_state_pre_hook(lambda models, weights, folder: self._save(folder)),
            accelerator.register_load_state_pre_hook(lambda models, folder: self._load(folder)),
        ]
        _taken.add(accelerator)

    def capture(self, step: int | None = None, *, skipped: bool = False) -> bool:
        """As WeightAverager's, where the optimizer has stepped; while gradients accumulate it does nothing."""
        if not self.accelerator.sync_gradients:
            return False
        if not self._attached():  # or the scaler has said so, and the accelerator will know it after the step
            skipped = skipped or self.accelerator.optimizer_step_was_skipped
        return super().capture(step, skipped=skipped)

    def close(self) -> None:
        super().close()
        if self._hooks:
            _taken.discard(self.accelerator)
        while self._hooks:
            self._hooks.pop().remove()

    def _save(self, folder: str) -> None:
        self._state.save(Path(folder) / FOLDER)

    def _load(self, folder: str) -> None:
        state = Path(folder) / FOLDER
        if from_first(state.exists):
            self._state.load(state)
        else:
            self.restart()
            warnings.warn(
                f"{folder} has no state of the averager ({FOLDER}/): its averages start anew at update 0; where the "
                "trainer's number is another, pass it on: update(step=…)",
                stacklevel=3,
            )


def _own(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    return optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
