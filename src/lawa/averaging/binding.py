"""What the averager binds itself to: the tensors that hold what is trained, wherever they lie.

    ModelTensors    a model's own parameters, or their DTensor shards (parameters.py)
    ReplicaSlices   this rank's 1/W of parameters that W ranks have whole (replicas.py)

What is captured is what the optimizer steps: so a replacement is not undone by its next step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import nn

from lawa.averaging import optimizer_state
from lawa.averaging.layout import Entry
from lawa.averaging.parameters import ModelTensors
from lawa.averaging.replicas import ReplicaSlices
from lawa.errors import LawaError


class Binding(Protocol):
    """What the averager asks of a model's tensors.

    trained  the entries that are captured, averaged and replaced, in the model's order
    form     how their tensors are cut: a saved state goes on in an averager of the same form
    """

    trained: list[Entry]
    form: str

    def reshard(self) -> None:
        """Call before the tensors are read or written: what training computes with may be a copy of them."""
        ...

    def check_bound(self) -> None:
        """Raise LawaError where the tensors are the model's no more."""
        ...

    def written(self) -> None:
        """Call after `trained` was written: whatever training computes with follows from it (may be collective)."""
        ...

    def check_trained(self) -> None:
        """Raise LawaError when a parameter was frozen or unfrozen since."""
        ...

    def stepped_by_optimizers(self) -> bool:
        """Whether every tensor is a parameter of the optimizers given: then nothing moves them but their steps."""
        ...

    def moments(self) -> list[Entry]:
        """Entries `exp_avg.NAME` and `exp_avg_sq.NAME`, one pair for each that the optimizers train."""
        ...

    def reset_moments(self) -> None:
        """The optimizers' states of every parameter become those of a new optimizer."""
        ...


def bind(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], *, buffers: str, replicas: str) -> Binding:
    """The binding that this model needs. Raises LawaError for what is not supported, naming what is."""
    if replicas not in ("whole", "split"):
        raise LawaError(f"replicas={replicas!r} must be 'whole' or 'split'")
    if buffers not in ("latest", "average"):
        raise LawaError(f"buffers={buffers!r} must be 'latest' or 'average'")
    for optimizer in optimizers:
        optimizer_state.refuse_masters(optimizer)
    _refuse_unsupported(model)
    tensors = ModelTensors(model, optimizers, buffers=buffers)
    return ReplicaSlices(model, tensors) if replicas == "split" else tensors


def _refuse_unsupported(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if type(module).__name__ == "FullyShardedDataParallel":
            raise LawaError(
                f"module {name or 'model'!r} is FSDP1, whose flat parameters are not supported; use FSDP2 (fully_shard)"
            )
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "ds_id"):
            raise LawaError(f"parameter {name!r} is a DeepSpeed ZeRO-3 partition, which this version does not support")
