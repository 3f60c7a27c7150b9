"""LAWA in a loop that Accelerate prepared: the averager that knows its accelerator.

    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    averager = AcceleratedAverager(accelerator, model, optimizer, mode="replace", every=1000, window=10)
    for batch in loader:
        with accelerator.accumulate(model):
            accelerator.backward(loss_of(model, batch)); optimizer.step(); optimizer.zero_grad()
            averager.update()

accelerator.save_state and load_state carry its state in DIRECTORY/lawa. (What is registered for checkpointing goes
through pickles, unsharded, and the loading of those allows any code.)
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lawa.averaging.averager import WeightAverager
from lawa.checkpoints.averager_state import AveragerState
from lawa.errors import require

try:
    from accelerate import Accelerator
    from accelerate.logging import get_logger
    from accelerate.optimizer import AcceleratedOptimizer
except ModuleNotFoundError:
    require("accelerate", extra="accelerate")
    raise

log = get_logger("lawa")

FOLDER = "lawa"  # of the averager's state in what save_state writes


class AcceleratedAverager(WeightAverager):
    """A WeightAverager for what `accelerator.prepare` gave; every process makes one.

    model, optimizer  as they came from `prepare`; several optimizers as a list
    settings          of WeightAverager

    `update()` and `capture()` may be called for every batch: they count where the optimizer stepped
    (`accelerator.sync_gradients`), and mark what the loss scaler skipped (`accelerator.optimizer_step_was_skipped`).
    An accelerator has one AcceleratedAverager; several averages are `averages={name: …}`.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None = None,
        **settings: Any,
    ) -> None:
        several = optimizer if isinstance(optimizer, Iterable) else [optimizer]
        super().__init__(model, [_own(one) for one in several if one is not None], **settings)
        self.accelerator = accelerator
        self._state = AveragerState(self)
        self._hooks = [
            accelerator.register_save_state_pre_hook(lambda models, weights, folder: self._save(folder)),
            accelerator.register_load_state_pre_hook(lambda models, folder: self._load(folder)),
        ]

    def capture(self, step: int | None = None, *, skipped: bool = False) -> bool:
        """As WeightAverager's, where the optimizer has stepped; while gradients accumulate it does nothing."""
        if not self.accelerator.sync_gradients:
            return False
        if not self._attached():  # or the scaler has said so, and the accelerator will know it after the step
            skipped = skipped or self.accelerator.optimizer_step_was_skipped
        return super().capture(step, skipped=skipped)

    def close(self) -> None:
        super().close()
        while self._hooks:
            self._hooks.pop().remove()

    def _save(self, folder: str) -> None:
        self._state.save(Path(folder) / FOLDER)

    def _load(self, folder: str) -> None:
        if (Path(folder) / FOLDER).exists():
            self._state.load(Path(folder) / FOLDER)
        else:
            log.warning("%s has no averager's state; the averages go on with what they hold", folder)


def _own(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    return optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
