"""Dynamic loss scaling for fp16 arithmetic on fp32 weights, by DeepSpeed's rule, as Pythia was trained.

Gradients that are too small for fp16 vanish, so the loss is multiplied by a scale S before backward, and the
gradients are divided by it afterwards. S is as large as it may be: with window w and hysteresis h,

    an overflow (inf or nan in a gradient)  the update is skipped; the first h − 1 are borne, each later one
                                            sets S ← max(S/2, least)
    a finite update after w, 2w, … of them  S ← 2S, and the next h − 1 overflows are borne again

Source: deepspeed/runtime/fp16/loss_scaler.py, DynamicLossScaler.update_scale (deepspeedai/DeepSpeed edaa7221) with
consecutive_hysteresis off; Pythia's settings are the defaults of training.loss_scale* (EleutherAI/pythia a19eecb).
torch's GradScaler scales, unscales and looks for inf and nan: on any device, and for FSDP2's gradients over all ranks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lawa.errors import LawaError

_FACTOR = 2.0
_STATE = ("scale_now", "hysteresis_left", "update", "last_overflow")


class LossScaler:
    """The scale, and whether an update is made. One optimizer; its gradients are fp32.

        scaler.scale(loss).backward(); scaler.unscale(optimizer); clip_grad_norm_(…); scaler.step(optimizer)

    device      where the losses lie
    initial     S at the first update
    window      finite updates in a row, after which the next finite one doubles S
    hysteresis  overflows before S is halved, counted since it last doubled
    least       S never falls below it

    With several ranks every rank has one and calls it; DDP's gradients are the same on each.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        initial: float = 4096.0,
        window: int = 1000,
        hysteresis: int = 2,
        least: float = 1.0,
    ) -> None:
        self.device = device
        self.window = window
        self.hysteresis = hysteresis
        self.least = least
        self.scale_now = float(initial)
        self.hysteresis_left = hysteresis
        self.update = 0  # how many there were, skipped ones too
        self.last_overflow = -1
        self._amp = torch.amp.GradScaler(device.type, init_scale=self.scale_now)

    def scale(self, loss: Tensor) -> Tensor:
        """loss · S; call backward on it."""
        return self._amp.scale(loss)

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients by S, in place: once an update, after the last backward and before clipping."""
        self._amp.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> bool:
        """Make the update, unless a gradient was not finite when it was unscaled; whether it was made.

        A skipped update leaves the optimizer, with its moments and counts, as it was. Then S is set for the next
        update. Raises LawaError for gradients that are not finite though S cannot be halved any more. Waits for
        the device.
        """
        found = self._amp._found_inf_per_device(optimizer)
        assert found, "step() comes after unscale(), which found gradients"
        overflow = any(bool(inf) for inf in found.values())
        if not overflow:
            optimizer.step()
        self._adjust(overflow=overflow)
        self._amp.update(self.scale_now)
        return not overflow

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in _STATE:
            setattr(self, name, state[name])
        self._amp = torch.amp.GradScaler(self.device.type, init_scale=self.scale_now)

    def _adjust(self, *, overflow: bool) -> None:
        if overflow:
            if self.hysteresis_left > 1:
                self.hysteresis_left -= 1
            elif self.scale_now <= self.least:
                raise LawaError(
                    f"gradients are not finite in fp16 even at the smallest loss scale, {self.least:g}: training has "
                    "diverged; lower training.lr, or train with training.precision=bf16"
                )
            else:
                self.scale_now = max(self.scale_now / _FACTOR, self.least)
            self.last_overflow = self.update
        else:
            finite = self.update - self.last_overflow - 1
            if finite and finite % self.window == 0:
                self.hysteresis_left = self.hysteresis
                self.scale_now *= _FACTOR
        self.update += 1
