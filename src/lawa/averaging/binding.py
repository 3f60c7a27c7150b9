"""What the averager binds itself to: the tensors that hold what is trained, wherever they lie.

    ModelTensors    a model's own parameters, or their DTensor shards (parameters.py)
    ReplicaSlices   this rank's 1/W of parameters that W ranks have whole (replicas.py)
    ZeroTensors     this rank's fragments of DeepSpeed's fp32 masters (zero.py)

What is captured is what the optimizer steps: so a replacement is not undone by its next step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from lawa.averaging import optimizer_state
from lawa.averaging.layout import Entry
from lawa.averaging.parameters import ModelTensors
from lawa.averaging.replicas import ReplicaSlices
from lawa.averaging.zero import ZeroTensors, is_zero
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
    if replicas == "split" and buffers == "average":
        raise LawaError("replicas='split' cannot average buffers, which differ between ranks; choose one of the two")
    held = list(_held(model, optimizers))
    for optimizer in held:
        optimizer_state.refuse_masters(optimizer)
    zero = next(filter(is_zero, held), None)
    _refuse_unsupported(model, masters=zero is not None)
    if zero is not None:
        if replicas == "split":
            raise LawaError("replicas='split' has no use with DeepSpeed, whose partitions are split; choose 'whole'")
        return ZeroTensors(model, zero, buffers=buffers)
    tensors = ModelTensors(model, optimizers, buffers=buffers)
    return ReplicaSlices(model, tensors) if replicas == "split" else tensors


def _held(model: Any, optimizers: Iterable[Any]) -> Iterator[Any]:
    """The optimizers and those inside them, and a DeepSpeed engine's own: accelerate and DeepSpeed wrap them."""
    for optimizer in (*optimizers, getattr(model, "optimizer", None)):
        while optimizer is not None:
            yield optimizer
            yield from getattr(optimizer, "chained_optimizers", ())  # Megatron's
            optimizer = getattr(optimizer, "optimizer", None)


def _refuse_unsupported(model: nn.Module, *, masters: bool) -> None:
    """masters  whether DeepSpeed's were found"""
    for name, module in model.named_modules():
        if type(module).__name__ == "FullyShardedDataParallel":
            raise LawaError(
                f"module {name or 'model'!r} is FSDP1, whose flat parameters are not supported; use FSDP2 (fully_shard)"
            )
    for name, parameter in model.named_parameters():
        if not masters and (hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")):
            raise LawaError(
                f"parameter {name!r} is DeepSpeed's, whose optimizer has its master; pass the engine that "
                "deepspeed.initialize returned in the model's place, or its optimizer as the second argument"
            )
