"""How a snapshot lies in memory: one flat tensor per group (a device and a dtype), each entry at its offset.

So an average runs over a few long tensors instead of hundreds of short ones.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lawa.averaging import kernels

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
    """Entries sorted into groups, in the model's order; `form` as in Binding."""

    def __init__(self, entries: Iterable[Entry], *, form: str = "whole") -> None:
        super().__init__()
        self.form = form
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
        tensors = group.current()
        if kernels.copies(tensors, self[index]) and all(map(_fits, group.entries, tensors)):
            kernels.copy_into(self[index], group.offsets, tensors)
        else:
            torch._foreach_copy_(self._views[index], tensors, non_blocking=non_blocking)


def _fits(entry: Entry, tensor: Tensor) -> bool:
    return entry.shape == tensor.shape  # of another shape, torch says


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


def like(reference: Any, own: Tensor) -> Tensor:
    """`own` (a shard) as a DTensor sharded like `reference`, or `own` itself; never a copy or a transfer."""
    dtensor = _dtensor_class()
    if dtensor is None or not isinstance(reference, dtensor):
        return own
    return as_dtensor(own, reference.device_mesh, reference.placements, reference.shape, reference.stride())


def as_dtensor(own: Tensor, mesh: Any, placements: Any, shape: Sequence[int], stride: tuple[int, ...]) -> Any:
    """`own` as this rank's shard of a DTensor of that shape; no collective, no copy and no transfer."""
    from torch.distributed.tensor import DTensor

    if own.device.type == mesh.device_type:
        # Shape and stride are given because uneven shards would otherwise be asked for collectively.
        return DTensor.from_local(own, mesh, placements, run_check=False, shape=torch.Size(shape), stride=stride)
    # from_local moves its tensor to the mesh's device; a window kept on the host must stay there.
    from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

    meta = TensorMeta(torch.Size(shape), stride, own.dtype)
    return DTensor(own, DTensorSpec(mesh, tuple(placements), tensor_meta=meta), requires_grad=False)


def _dtensor_class() -> Any:
    """DTensor, or None when nobody has imported it: then no tensor is one."""
    return getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)
