"""Copies of the live state in host memory: what training waits for when a checkpoint is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lawa.averaging.layout import like, local

Tensors = dict[str, Tensor]


@dataclass(kw_only=True)
class Staged:
    """One checkpoint's tensors on the host, by the model's names; sharded as the model is.

    model      the weights; tied ones are one tensor under several names
    averages   {average: weights}, those that are published
    optimizer  {"exp_avg.NAME": …}
    running    {average: its state}
    snapshots  {update: weights (and moments)}, those that no checkpoint has yet
    """

    model: Tensors = field(default_factory=dict)
    averages: dict[str, Tensors] = field(default_factory=dict)
    optimizer: Tensors = field(default_factory=dict)
    running: dict[str, Tensors] = field(default_factory=dict)
    snapshots: dict[int, Tensors] = field(default_factory=dict)


class Stage:
    """Host memory that is filled again for each checkpoint; pinned where the state is on a GPU."""

    def __init__(self) -> None:
        self._memory: dict[tuple[str, str], Tensor] = {}
        self._shown: dict[tuple[str, str], Tensor] = {}  # the same, sharded as the model is: 40 µs a tensor to make

    @torch.no_grad()
    def copy(self, what: str, tensors: Mapping[str, Tensor]) -> Tensors:
        """`tensors` as they are now, in the memory of the last copy of `what`; settle() before they are read."""
        seen: dict[Any, Tensor] = {}
        into, source, result = [], [], {}
        for name, tensor in tensors.items():
            own = local(tensor)
            identity = (own.data_ptr(), own.shape, own.dtype) if own.numel() else name
            if identity not in seen:
                seen[identity] = self._room(what, name, own)
                into.append(seen[identity])
                source.append(own)
            shown = self._shown.get((what, name))
            if shown is None or local(shown).data_ptr() != seen[identity].data_ptr():
                shown = self._shown[what, name] = like(tensor, seen[identity])
            result[name] = shown
        torch._foreach_copy_(into, source, non_blocking=True)
        return result

    def settle(self) -> None:
        """Until the copies are whole."""
        if any(buffer.is_pinned() for buffer in self._memory.values()):
            torch.cuda.current_stream().synchronize()

    def _room(self, what: str, name: str, own: Tensor) -> Tensor:
        buffer = self._memory.get((what, name))
        if buffer is None or buffer.shape != own.shape or buffer.dtype != own.dtype:
            buffer = torch.empty(own.shape, dtype=own.dtype, pin_memory=own.device.type == "cuda")
            self._memory[what, name] = buffer
        return buffer


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> Tensors:
    """{"KEY.NAME": tensor} of every state tensor of every parameter."""
    return {
        f"{key}.{name}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


@torch.no_grad()
def room_for_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> Tensors:
    """The same of an AdamW that has not stepped, zeroed: memory to load into."""
    for _, parameter in model.named_parameters():
        if parameter.requires_grad:
            moments = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {"step": torch.zeros((), device=local(parameter).device), **moments}
    return optimizer_state(model, optimizer)
