"""Which tensors of a model are averaged: the parameters of an ordinary model, or of one sharded by DTensors.

One entry per storage: tied weights are read, averaged and written once, and stay tied. Frozen
parameters are referenced, never copied. Of a DTensor, only this rank's own shard is touched.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lawa.averaging import optimizer_state
from lawa.averaging.layout import Entry, local
from lawa.averaging.matching import canonical, canonical_names
from lawa.errors import LawaError


class ModelTensors:
    """A Binding of a model's own tensors, bound once: what an FSDP2 forward swaps out is still what we hold.

    trained   entries that are captured: parameters that require gradients, and float buffers on request
    frozen    parameters that do not: an average has their live value
    """

    form = "whole"

    def __init__(
        self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer] = (), *, buffers: str = "latest"
    ) -> None:
        self.optimizers = optimizers
        self.parameters: dict[str, nn.Parameter] = {}
        self.trained: list[Entry] = []
        self.frozen: dict[str, nn.Parameter] = {}
        self.tied: dict[str, str] = {}  # another name of the same storage: its entry's name
        self._places: dict[str, tuple[nn.Module, str, nn.Parameter]] = {}
        seen: dict[Any, str] = {}
        fsdp = sys.modules.get("torch.distributed.fsdp")
        sharded = getattr(fsdp, "FSDPModule", ())
        self._sharded: list[Any] = [module for module in model.modules() if isinstance(module, sharded)]
        self.reshard()
        self._sizes = [(name, module, _size(module)) for name, module in model.named_modules()]
        places = _places(model)
        for given, own in canonical_names(places, where=type(model).__name__).items():
            self._places[own] = places[given]
        # Trained ones first: a frozen parameter on a trained one's storage is another name of it.
        for own, (_, _, parameter) in sorted(self._places.items(), key=lambda place: not place[1][2].requires_grad):
            identity = _storage(parameter)
            if identity in seen:
                self.tied[own] = seen[identity]
                continue
            seen[identity] = own
            if not parameter.requires_grad:
                self.frozen[own] = parameter
                continue
            if parameter.is_complex():
                raise LawaError(f"parameter {own!r} is complex, which is not supported; train it as two real tensors")
            self.parameters[own] = parameter
            self.trained.append(_entry(own, parameter))
        if not self.trained:
            raise LawaError(f"{type(model).__name__} has no parameter that requires gradients: nothing to average")
        if buffers == "average":
            self._bind_buffers(model, seen)
        if any("lora_" in name.lower() for name in self.parameters):
            warnings.warn(
                "the model has LoRA matrices: the average of A and the average of B is not the average of BA",
                stacklevel=3,
            )

    def _bind_buffers(self, model: nn.Module, seen: dict[Any, str]) -> None:
        """Float buffers are captured too; integers and bools keep their latest value, which is what they have."""
        for given, buffer in model.named_buffers():
            if not buffer.is_floating_point() or _storage(buffer) in seen:
                continue
            owner, _, name = given.rpartition(".")
            module = model.get_submodule(owner)
            # A module may replace its buffer by assignment, so it is looked up at each capture.
            self.trained.append(
                Entry(canonical(given), buffer, lambda module=module, name=name: getattr(module, name), buffer.dtype)
            )

    def written(self) -> None:
        """The parameters are what training uses: nothing follows from them."""

    def stepped_by_optimizers(self) -> bool:
        its = {id(parameter) for parameter in optimizer_state.parameters_of(self.optimizers)}
        return all(id(entry.reference) in its for entry in self.trained)

    def moments(self) -> list[Entry]:
        return optimizer_state.moment_entries(self.parameters, self.optimizers)

    def reset_moments(self) -> None:
        optimizer_state.reset(self.parameters, self.optimizers)

    def reshard(self) -> None:
        """Make FSDP2 modules hold their sharded parameters again.

        A forward without gradients leaves unsharded copies behind, and the next forward would use those instead
        of what was written to the shards.
        """
        for module in self._sharded:
            module.reshard()

    def check_bound(self) -> None:
        """Raise when the model has another parameter in a place since: ours would be an orphan that never moves."""
        for name, (module, attribute, parameter) in self._places.items():
            if module._parameters.get(attribute) is not parameter:
                raise LawaError(
                    f"parameter {name!r} was exchanged for another one after the averager was made "
                    "(load_state_dict(assign=True), resized embeddings); make a new averager"
                )
        for name, module, size in self._sizes:
            if _size(module) != size:
                raise LawaError(
                    f"module {name or type(module).__name__!r} has other parameters or modules than when the averager "
                    "was made (a head or an adapter was added); make a new averager"
                )

    def check_trained(self) -> None:
        """Raise when a parameter was frozen or unfrozen since the averager was made."""
        for name, parameter in self.parameters.items():
            if not parameter.requires_grad:
                raise LawaError(f"parameter {name!r} was frozen after the averager was made; make a new averager")
        for name, parameter in self.frozen.items():
            if parameter.requires_grad:
                raise LawaError(f"parameter {name!r} was unfrozen after the averager was made; make a new averager")


def _places(model: nn.Module) -> dict[str, tuple[nn.Module, str, nn.Parameter]]:
    """{given name: (module, its attribute, parameter)}, tied ones under each of their names."""
    return {
        f"{prefix}.{attribute}" if prefix else attribute: (module, attribute, parameter)
        for prefix, module in model.named_modules(remove_duplicate=False)
        for attribute, parameter in module._parameters.items()
        if parameter is not None
    }


def _size(module: nn.Module) -> int:
    return len(module._parameters) + len(module._modules)


def _entry(name: str, parameter: Tensor) -> Entry:
    return Entry(name, parameter, lambda: parameter, parameter.dtype)


def _storage(tensor: Tensor) -> object:
    """What two names must share to be one entry: the same elements of the same memory."""
    own = local(tensor)
    if own.is_meta or own.numel() == 0:
        return id(tensor)
    return (own.device, own.data_ptr(), own.dtype, own.shape, own.stride())
