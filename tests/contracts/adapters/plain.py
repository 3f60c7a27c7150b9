"""Plain PyTorch loops, by hand and attached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from contracts.contract import LAST, LR, Adapter, During, Run, Tiny, batch, optimizer_of
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

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        self.optimizer.step()

    def run(self, save_at: int | None, resume: bool, during: During | None) -> Run:
        first = 1 + (self.load() if resume else 0)
        for t in range(first, LAST + 1):
            self.before()
            self.backward(self.model(batch(t))["loss"])
            self.step()
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


class AttachedWithScaler(Loop):
    """averager.attach(scaler=scaler): a scale of 1 leaves the bits alone."""

    def __init__(self, settings: dict[str, Any], folder: Path) -> None:
        super().__init__(settings, folder)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1.0, growth_interval=10**6)
        self.averager.attach(scaler=self.scaler)

    def backward(self, loss: torch.Tensor) -> None:
        self.scaler.scale(loss).backward()

    def step(self) -> None:
        self.scaler.step(self.optimizer)
        self.scaler.update()


class TwoOptimizers(Loop):
    """Attached to two: an update is over when both have stepped."""

    def __init__(self, settings: dict[str, Any], folder: Path) -> None:
        super().__init__(settings, folder)
        first, *others = self.model.parameters()
        self.other = torch.optim.AdamW(others, lr=LR, weight_decay=0.0)
        self.optimizer = torch.optim.AdamW([first], lr=LR, weight_decay=0.0)
        self.averager = WeightAverager(self.model, [self.optimizer, self.other], **settings)
        self.averager.attach()

    def step(self) -> None:
        self.optimizer.step()
        self.other.step()
        self.other.zero_grad()

    def save(self, t: int) -> None:
        super().save(t)
        torch.save(self.other.state_dict(), self.file.with_name("other.pt"))

    def load(self) -> int:
        self.other.load_state_dict(torch.load(self.file.with_name("other.pt"), weights_only=True))
        return super().load()


def adapter(loop: type[Loop], **placement: Any) -> Adapter:
    def run(
        settings: dict[str, Any], folder: Path, *,
        save_at: int | None = None, resume: bool = False, during: During | None = None,
    ) -> Run:  # fmt: skip
        more = {"folder": folder} if placement.get("placement") == "disk" or "host_bytes" in placement else {}
        return loop({**settings, **placement, **more}, folder).run(save_at, resume, during)

    return run


ADAPTERS: dict[str, Adapter] = {
    "update()": adapter(ByHand),
    "update(step)": adapter(ByHandWithNumbers),
    "capture and replace_if_due": adapter(InTwoHalves),
    "attached to the optimizer": adapter(Attached),
    "attached, with a loss scaler": adapter(AttachedWithScaler),
    "attached to two optimizers": adapter(TwoOptimizers),
    "snapshots on the host": adapter(InTwoHalves, placement="host"),
    "snapshots on disk": adapter(InTwoHalves, placement="disk"),
    "snapshots on the host and on disk": adapter(InTwoHalves, placement="host", host_bytes=400),
}
