"""FSDP2: every rank has a shard of each weight; the state goes through torch DCP, in one checkpoint."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch import distributed
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from contracts.adapters.plain import InTwoHalves, adapter
from contracts.contract import Adapter, During, Run, Tiny, optimizer_of
from lawa import WeightAverager


class Fsdp2(InTwoHalves):
    """Each rank trains on the same batch, so that the mean of the gradients is each of them, exactly."""

    def __init__(self, settings: dict[str, Any], folder: Path) -> None:
        self.model = Tiny()
        mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
        fully_shard(self.model.inner, mesh=mesh)
        fully_shard(self.model, mesh=mesh)
        self.optimizer = optimizer_of(self.model)
        self.averager = WeightAverager(self.model, self.optimizer, **settings)
        self.file = folder / "checkpoint"

    def run(self, save_at: int | None, resume: bool, during: During | None) -> Run:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")  # as any Linear does
            return super().run(save_at, resume, during)

    def save(self, t: int) -> None:
        dcp.save(self.state(t), checkpoint_id=self.file)

    def load(self) -> int:
        self.averager.prepare_to_load(self.file)
        state = self.state(0)
        dcp.load(state, checkpoint_id=self.file)
        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        return state["t"]

    def state(self, t: int) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"t": t, "model": model, "optimizer": optimizer, "averager": self.averager}


ADAPTERS: dict[str, Adapter] = {
    "FSDP2": adapter(Fsdp2),
    "FSDP2, snapshots on disk": adapter(Fsdp2, placement="disk"),
}
