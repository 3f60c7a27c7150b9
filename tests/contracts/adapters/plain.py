"""Plain PyTorch loops, by hand and attached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from contracts.contract import LAST, Adapter, During, Run, Tiny, batch, optimizer_of
from lawa import WeightAverager


class Loop:
    """A plain loop, and the three calls in which plain loops differ."""

    def __init__(self, settings: dict[str, Any], folder: Path) -> None:
        self.model = Tiny()
        self.optimizer = optimizer_of(self.model)
        self.averager = WeightAverager(self.model, self.optimizer, **settings)
        self.file = folder / "checkpoint.pt"

    def before(self) -> None:
        """Before an update begins, and when training ends."""

    def after(self, t: int) -> None:
        """After the optimizer's step."""

    def run(self, save_at: int | None, resume: bool, during: During | None) -> Run:
        first = 1 + (self.load() if resume else 0)
        for t in range(first, LAST + 1):
            self.before()
            self.model(batch(t))["loss"].backward()
            self.optimizer.step()
            self.after(t)
            self.optimizer.zero_grad()
            if during:
                during(t, Run(self.model, self.averager))
            if t == save_at:
                self.save(t)
        self.before()
        return Run(self.model, self.averager)

    def save(self, t: int) -> None:
        torch.save(
            {
                "t": t,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "averager": self.averager.state_dict(),
            },
            self.file,
        )

    def load(self) -> int:
        state = torch.load(self.file, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.averager.load_state_dict(state["averager"])
        return state["t"]


class ByHand(Loop):
    """averager.update() after each optimizer step."""

    def after(self, t: int) -> None:
        self.averager.update()


class ByHandWithNumbers(Loop):
    """averager.update(step=t), as with a trainer's own count."""

    def after(self, t: int) -> None:
        self.averager.update(step=t)


class InTwoHalves(Loop):
    """As trainers do: capture after the step, evaluate and save, and replace when the next update begins."""

    def before(self) -> None:
        self.averager.replace_if_due()

    def after(self, t: int) -> None:
        self.averager.capture(t)


class Attached(Loop):
    """averager.attach(): the optimizer's steps are the updates."""

    def __init__(self, settings: dict[str, Any], folder: Path) -> None:
        super().__init__(settings, folder)
        self.averager.attach()


def adapter(loop: type[Loop]) -> Adapter:
    def run(
        settings: dict[str, Any], folder: Path, *,
        save_at: int | None = None, resume: bool = False, during: During | None = None,
    ) -> Run:  # fmt: skip
        return loop(settings, folder).run(save_at, resume, during)

    return run


ADAPTERS: dict[str, Adapter] = {
    "update()": adapter(ByHand),
    "update(step)": adapter(ByHandWithNumbers),
    "capture and replace_if_due": adapter(InTwoHalves),
    "attached to the optimizer": adapter(Attached),
}
