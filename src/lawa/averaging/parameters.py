"""Which tensors of a model are averaged, and how a snapshot of them lies in memory.

One entry per storage: tied weights are read, averaged and written once, and stay tied. Frozen
parameters are referenced, never copied. Of a DTensor, only this rank's own shard is touched.

A snapshot is one flat tensor per group (a device and a dtype), each entry at its offset; so an average
runs over a few long tensors instead of hundreds of short ones.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lawa.averaging.matching import canonical, canonical_names
from lawa.errors import LawaError

_ALIGNMENT = 64  # bytes: every entry starts on a cache line

Part = tuple["Group", Tensor]  # a group and a flat tensor with its values


@dataclass(frozen=True)
class Entry:
    """One captured tensor.

    name       canonical name, unique
    reference  the tensor whose shape, device and sharding this entry has; a parameter or buffer
    current    returns the tensor as it is now, or None while it does not exist (an optimizer's moment)
    moment     whether it belongs to the optimizer and not to the model
    """

    name: str
    reference: Tensor
    current: Callable[[], Tensor | None]
    dtype: torch.dtype
    moment: bool = False

    @cached_property
    def shape(self) -> torch.Size:
        """Of this rank's shard."""
        return local(self.reference).shape

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def device(self) -> torch.device:
        return local(self.reference).device


@dataclass
class Group:
    """The weights, or the moments, of one device and dtype: in one flat tensor."""

    device: torch.device
    dtype: torch.dtype
    moments: bool = False
    entries: list[Entry] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    numel: int = 0

    def add(self, entry: Entry) -> None:
        step = _ALIGNMENT // self.dtype.itemsize
        self.entries.append(entry)
        self.offsets.append(self.numel)
        self.numel += -(-entry.numel // step) * step

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize

    @property
    def state_dtype(self) -> torch.dtype:
        """Of running averages: fp32, or fp64 for weights in fp64."""
        return torch.promote_types(torch.float32, self.dtype)

    @property
    def state_nbytes(self) -> int:
        return self.numel * self.state_dtype.itemsize

    def views(self, flat: Tensor) -> list[Tensor]:
        """Each entry's part of `flat`, in its shape."""
        return [
            flat[offset : offset + entry.numel].view(entry.shape)
            for entry, offset in zip(self.entries, self.offsets, strict=True)
        ]

    def current(self) -> list[Tensor]:
        """This rank's own tensors as they are now; zeros where the optimizer has not made them yet."""
        found = (entry.current() for entry in self.entries)
        return [
            torch.zeros(entry.shape, dtype=self.dtype, device=self.device) if tensor is None else local(tensor)
            for entry, tensor in zip(self.entries, found, strict=True)
        ]

    def allocate(
        self, *, dtype: torch.dtype | None = None, device: torch.device | None = None, pinned: bool = False
    ) -> Tensor:
        """A flat tensor for this group; zeroed, so that the gaps between entries are always finite."""
        return torch.zeros(self.numel, dtype=dtype or self.dtype, device=device or self.device, pin_memory=pinned)


class Layout(list[Group]):
    """Entries sorted into groups, in the model's order."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        super().__init__()
        groups: dict[tuple[torch.device, torch.dtype, bool], Group] = {}
        for entry in entries:
            key = (entry.device, entry.dtype, entry.moment)
            if key not in groups:
                groups[key] = Group(*key)
                self.append(groups[key])
            groups[key].add(entry)

    @property
    def nbytes(self) -> int:
        """Bytes of one snapshot on this rank."""
        return sum(group.nbytes for group in self)


class Snapshot(list[Tensor]):
    """One flat tensor per group of a layout, in memory that is filled again and again.

    Each entry's part of it is made into a view once: for a small tensor that costs more than its copy.
    """

    def __init__(self, layout: Layout, flats: Iterable[Tensor]) -> None:
        super().__init__(flats)
        self._views = [group.views(flat) for group, flat in zip(layout, self, strict=True)]

    @torch.no_grad()
    def fill(self, index: int, group: Group, *, non_blocking: bool = False) -> None:
        """Copy the tensors of `group`, the layout's `index`-th, as they are now."""
        torch._foreach_copy_(self._views[index], group.current(), non_blocking=non_blocking)


@torch.no_grad()
def read(parts: Iterable[Part], *, non_blocking: bool = False) -> None:
    """Copy the tensors of each group, as they are now, into its flat tensor."""
    for group, flat in parts:
        torch._foreach_copy_(group.views(flat), group.current(), non_blocking=non_blocking)


@torch.no_grad()
def write(parts: Iterable[Part]) -> None:
    """Copy each flat tensor into the tensors of its group, in place."""
    for group, flat in parts:
        torch._foreach_copy_(group.current(), group.views(flat))


@torch.no_grad()
def toward(parts: Iterable[Part], alpha: float) -> list[Part]:
    """θ + α(average − θ), in at least fp32, each operation rounded once."""
    result: list[Part] = []
    for group, average in parts:
        theta = group.allocate(dtype=group.state_dtype)
        read([(group, theta)])
        result.append((group, (average.to(group.device) - theta).mul_(alpha).add_(theta)))
    return result


def named(parts: Iterable[Part]) -> dict[str, Tensor]:
    """{name: tensor} over the flat tensors' own memory; sharded as the model is where the model is sharded."""
    return {
        entry.name: like(entry.reference, view)
        for group, flat in parts
        for entry, view in zip(group.entries, group.views(flat), strict=True)
    }


class ModelTensors:
    """A model's tensors, bound once: the objects an FSDP2 forward swaps out are still the ones we hold.

    trained   entries that are captured: parameters that require gradients, and float buffers on request
    frozen    parameters that do not: an average has their live value
    """

    def __init__(self, model: nn.Module, *, buffers: str = "latest") -> None:
        _refuse_unsupported(model)
        if buffers not in ("latest", "average"):
            raise LawaError(f"buffers={buffers!r} must be 'latest' or 'average'")
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

    def trained_by(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether every captured tensor is a parameter of `optimizer`: then nothing moves them but its step."""
        its = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        return all(id(entry.reference) in its for entry in self.trained)

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

    def check_trained(self) -> None:
        """Raise when a parameter was frozen or unfrozen since the averager was made."""
        for name, parameter in self.parameters.items():
            if not parameter.requires_grad:
                raise LawaError(f"parameter {name!r} was frozen after the averager was made; make a new averager")
        for name, parameter in self.frozen.items():
            if parameter.requires_grad:
                raise LawaError(f"parameter {name!r} was unfrozen after the averager was made; make a new averager")


def local(tensor: Any) -> Tensor:
    """This rank's own part, outside autograd: a DTensor's shard, or the tensor itself."""
    dtensor = _dtensor_class()
    if dtensor is not None and isinstance(tensor, dtensor):
        return tensor._local_tensor.detach()  # to_local() goes through autograd, 20 µs a tensor
    return tensor.detach()


def full(tensor: Any) -> Tensor:
    """All of it, outside autograd: a DTensor's shards put together (a collective), or the tensor itself."""
    dtensor = _dtensor_class()
    return (tensor.full_tensor() if dtensor is not None and isinstance(tensor, dtensor) else tensor).detach()


def _places(model: nn.Module) -> dict[str, tuple[nn.Module, str, nn.Parameter]]:
    """{given name: (module, its attribute, parameter)}, tied ones under each of their names."""
    return {
        f"{prefix}.{attribute}" if prefix else attribute: (module, attribute, parameter)
        for prefix, module in model.named_modules(remove_duplicate=False)
        for attribute, parameter in module._parameters.items()
        if parameter is not None
    }


def _entry(name: str, parameter: Tensor) -> Entry:
    return Entry(name, parameter, lambda: parameter, parameter.dtype)


def _storage(tensor: Tensor) -> object:
    """What two names must share to be one entry: the same elements of the same memory."""
    own = local(tensor)
    if own.is_meta or own.numel() == 0:
        return id(tensor)
    return (own.device, own.data_ptr(), own.dtype, own.shape, own.stride())


def like(reference: Any, own: Tensor) -> Tensor:
    """`own` (a shard) as a DTensor sharded like `reference`, or `own` itself; never a copy or a transfer."""
    dtensor = _dtensor_class()
    if dtensor is None or not isinstance(reference, dtensor):
        return own
    if own.device.type == reference.device_mesh.device_type:
        # Shape and stride are given because uneven shards would otherwise be asked for collectively.
        return dtensor.from_local(
            own, reference.device_mesh, reference.placements,
            run_check=False, shape=reference.shape, stride=reference.stride(),
        )  # fmt: skip
    # from_local moves its tensor to the mesh's device; a window kept on the host must stay there.
    from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

    meta = TensorMeta(reference.shape, reference.stride(), own.dtype)
    return dtensor(own, DTensorSpec(reference.device_mesh, reference.placements, tensor_meta=meta), requires_grad=False)


def _dtensor_class() -> Any:
    """DTensor, or None when nobody has imported it: then no tensor is one."""
    return getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)


def _refuse_unsupported(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if type(module).__name__ == "FullyShardedDataParallel":
            raise LawaError(
                f"module {name or 'model'!r} is FSDP1, whose flat parameters are not supported; use FSDP2 (fully_shard)"
            )
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "ds_id"):
            raise LawaError(f"parameter {name!r} is a DeepSpeed ZeRO-3 partition, which this version does not support")
