"""Weights that are DTensors sharded along either dimension, of which each rank computes with the whole.

ColwiseParallel and RowwiseParallel split sums (of the input's gradient, of the output), so their bits are not those
of one process; averaging/parallel.py has them. Here only the weights are split, and no sum is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from contracts.adapters.plain import InTwoHalves, adapter
from contracts.contract import Adapter, Tiny, optimizer_of
from lawa import WeightAverager
from lawa.checkpoints.averager_state import AveragerState


def split(layer: nn.Linear | nn.Embedding, dim: int) -> None:
    """Shard the layer's weights along `dim` (a bias along its only one); they are gathered where it computes."""
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    for name, weight in list(layer.named_parameters()):
        sharded = distribute_tensor(weight.detach(), mesh, [Shard(min(dim, weight.ndim - 1))])
        layer.register_parameter(name, nn.Parameter(sharded))

    def forward(x: Tensor) -> Tensor:
        whole = {name: weight.full_tensor() for name, weight in layer.named_parameters()}  # type: ignore[attr-defined]
        if isinstance(layer, nn.Embedding):
            return nn.functional.embedding(x, **whole)
        return nn.functional.linear(x, **whole)

    layer.forward = forward


class TensorParallel(InTwoHalves):
    """The state beside the trainer's checkpoint: AveragerState."""

    def __init__(self, settings: dict[str, Any], folder: Path) -> None:
        self.model = Tiny()
        split(self.model.embed, 1)
        split(self.model.inner, 0)
        split(self.model.head, 1)
        self.model.head.weight = self.model.embed.weight
        self.optimizer = optimizer_of(self.model)
        self.averager = WeightAverager(self.model, self.optimizer, **settings)
        self.file, self.averaging = folder / "checkpoint", AveragerState(self.averager)

    def save(self, t: int) -> None:
        dcp.save(self.state(t), checkpoint_id=self.file)
        self.averaging.save(self.file.with_name("lawa"))

    def load(self) -> int:
        state = self.state(0)
        dcp.load(state, checkpoint_id=self.file)
        model, optimizer = state["model"], state["optimizer"]
        set_state_dict(self.model, self.optimizer, model_state_dict=model, optim_state_dict=optimizer)
        self.averaging.load(self.file.with_name("lawa"))
        return state["t"]

    def state(self, t: int) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"t": t, "model": model, "optimizer": optimizer}


ADAPTERS: dict[str, Adapter] = {"tensor parallel": adapter(TensorParallel)}
