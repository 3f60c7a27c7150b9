"""DDP: every rank has the whole model; the averager is given the wrapped one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from contracts.adapters.plain import InTwoHalves, adapter
from contracts.contract import Adapter, During, Run, Tiny, Weights, optimizer_of
from lawa import WeightAverager
from lawa.checkpoints.averager_state import AveragerState


class Ddp(InTwoHalves):
    """Each rank trains on the same batch, so that the mean of the gradients is each of them, exactly."""

    def __init__(self, settings: dict[str, Any], folder: Path) -> None:
        self.own = Tiny()
        self.model = DistributedDataParallel(self.own)
        self.optimizer = optimizer_of(self.model)
        self.averager = WeightAverager(self.model, self.optimizer, **settings)
        self.file, self.state = folder / "checkpoint.pt", AveragerState(self.averager)

    def run(self, save_at: int | None, resume: bool, during: During | None) -> Run:
        super().run(save_at, resume, (lambda t, _: during(t, self.result())) if during else None)
        return self.result()

    def result(self) -> Run:
        return Run(self.own, self.averager)

    def save(self, t: int) -> None:
        if distributed.get_rank() == 0:
            state = {"t": t, "model": self.own.state_dict(), "optimizer": self.optimizer.state_dict()}
            torch.save(state, self.file)
        self.state.save(self.file.with_name("lawa"))

    def load(self) -> int:
        state = torch.load(self.file, weights_only=True)
        self.own.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.state.load(self.file.with_name("lawa"))
        return state["t"]


class SharedSnapshots(Ddp):
    """Each rank keeps half of every snapshot."""

    def __init__(self, settings: dict[str, Any], folder: Path) -> None:
        super().__init__({"replicas": "split", **settings}, folder)

    def result(self) -> Run:
        return Shared(self.own, self.averager)


class Shared(Run):
    def snapshots(self) -> dict[int, Weights]:
        shapes = {name: parameter.shape for name, parameter in self.model.named_parameters()}
        return {
            step: {name: values.reshape(shapes[name]) for name, values in one.items()}
            for step, one in super().snapshots().items()
        }


ADAPTERS: dict[str, Adapter] = {
    "DDP": adapter(Ddp),
    "DDP, shared snapshots": adapter(SharedSnapshots),
}
