"""The averager on optimizers' own hooks: their steps are the updates.

torch runs the hook of a fused optimizer also for a step that a loss scaler skips, and of another one for its steps
only; so where there is a scaler, it is asked, and every update counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch

from lawa.errors import LawaError


class Attachment:
    """The handle of `WeightAverager.attach`; remove() ends it.

    An update is over when each of the optimizers has stepped, or was skipped. `after` is then called with a function
    that says whether any was skipped: it may wait for the device, so only a capture asks.
    """

    def __init__(
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        scaler: torch.amp.GradScaler | None,
        after: Callable[[Callable[[], bool]], Any],
    ) -> None:
        self.attached = True
        self._optimizers = optimizers
        self._scaler = scaler
        self._after = after
        self._found: dict[int, Any] = {}  # of each optimizer that has stepped in this update: what was not finite
        self._hook_ran = False  # in the scaler's step under way
        self._hooks = [optimizer.register_step_post_hook(self._stepped) for optimizer in optimizers]
        if scaler is not None:
            self._before = vars(scaler).get("step")  # another averager's
            self._step = scaler.step
            scaler.step = self._scaled_step

    def remove(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()
        if self._scaler is not None and vars(self._scaler).get("step") == self._scaled_step:
            if self._before is None:
                del self._scaler.step  # its class's again
            else:
                self._scaler.step = self._before
        self.attached = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _stepped(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self._hook_ran = True
        self._over(optimizer, getattr(optimizer, "found_inf", None))  # there during a scaler's step of a fused one

    def _scaled_step(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        self._hook_ran = False
        result = self._step(optimizer, *args, **kwargs)
        if self.attached and not self._hook_ran and any(optimizer is one for one in self._optimizers):
            self._over(optimizer, True)
        return result

    def _over(self, optimizer: torch.optim.Optimizer, found: Any) -> None:
        if id(optimizer) in self._found:
            self._found = {}
            raise LawaError(
                f"{type(optimizer).__name__} has stepped twice before every attached optimizer did; where they step at "
                "different times, or a loss scaler skips one (attach(scaler=scaler)), call update() instead"
            )
        self._found[id(optimizer)] = found
        if len(self._found) == len(self._optimizers):
            found_infs, self._found = self._found.values(), {}
            self._after(lambda: any(found is not None and bool(found) for found in found_infs))
