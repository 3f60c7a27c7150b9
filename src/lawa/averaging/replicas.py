"""Data-parallel replicas that share a snapshot: each of W ranks keeps 1/W of every tensor that all have whole.

A slice is what a DTensor with Shard(0) of the flattened tensor has on this rank; so a state saved on W ranks goes on on
another number. A capture and an average touch the rank's own slices; after these are written, all ranks exchange them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any

import torch
from torch import Tensor, distributed, nn

from lawa.averaging.layout import Entry, as_dtensor
from lawa.averaging.parameters import ModelTensors
from lawa.errors import LawaError

_TOGETHER = 1 << 25  # elements of whole tensors that are exchanged at once


@dataclass(frozen=True)
class _Slice:
    """Elements start … stop of a flattened tensor; each rank's has `chunk`, the last ones fewer or none."""

    whole: Callable[[], Tensor]
    chunk: int
    start: int
    stop: int

    def own(self) -> Tensor:
        return self.whole()[self.start : self.stop]


class ReplicaSlices:
    """A Binding to this rank's slices of a model's own tensors, on the ranks of DDP's group, or else on all."""

    form = "split"

    def __init__(self, model: nn.Module, tensors: ModelTensors) -> None:
        self._tensors = tensors
        self._group: Any = None
        self._rank, self._ranks, self._mesh = 0, 1, None
        if distributed.is_available() and distributed.is_initialized():
            self._group = getattr(model, "process_group", None) or distributed.group.WORLD
            self._rank, self._ranks = distributed.get_rank(self._group), distributed.get_world_size(self._group)
        self._slices: list[_Slice] = []
        self.trained = [self._entry(entry) for entry in tensors.trained]
        self.reshard = tensors.reshard
        self.check_bound = tensors.check_bound
        self.check_trained = tensors.check_trained
        self.stepped_by_optimizers = tensors.stepped_by_optimizers
        self.reset_moments = tensors.reset_moments

    def moments(self) -> list[Entry]:
        raise LawaError("moments='average' needs whole snapshots on every rank; choose replicas='whole', or 'keep'")

    @torch.no_grad()
    def written(self) -> None:
        """Every rank gets the slices of the others: one all-gather for every 32M elements."""
        if self._ranks == 1:
            return
        exchange = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor  # before 2.13
        for together in self._buckets():
            whole = together[0].whole()
            length = sum(one.chunk for one in together)
            mine = torch.zeros(length, dtype=whole.dtype, device=whole.device)
            everyones = mine.new_empty(self._ranks, length)
            offsets = list(accumulate((one.chunk for one in together[:-1]), initial=0))
            for one, offset in zip(together, offsets, strict=True):
                mine[offset : offset + one.stop - one.start] = one.own()
            # As bytes: not every backend knows every dtype.
            exchange(everyones.view(-1).view(torch.uint8), mine.view(torch.uint8), group=self._group)
            for one, offset in zip(together, offsets, strict=True):
                whole = one.whole()
                whole.copy_(everyones[:, offset : offset + one.chunk].reshape(-1)[: whole.numel()])

    def _entry(self, entry: Entry) -> Entry:
        if hasattr(entry.reference, "device_mesh"):
            raise LawaError(
                f"replicas='split' is for tensors that every rank has whole, and {entry.name!r} is sharded already; "
                "leave it out"
            )
        if not entry.reference.is_contiguous():
            raise LawaError(f"replicas='split' cannot cut {entry.name!r}, which is not contiguous; leave it out")

        def whole() -> Tensor:
            now = entry.current()
            assert now is not None  # weights and buffers exist
            return now.detach().view(-1)

        numel = entry.reference.numel()
        chunk = -(-numel // self._ranks)
        start = min(self._rank * chunk, numel)
        one = _Slice(whole, chunk, start, min(start + chunk, numel))
        self._slices.append(one)
        return Entry(entry.name, self._reference(one, numel), one.own, entry.dtype)

    def _reference(self, one: _Slice, numel: int) -> Tensor:
        if self._group is None:
            return one.own()
        from torch.distributed.device_mesh import DeviceMesh
        from torch.distributed.tensor import Shard

        own = one.own()
        if self._mesh is None:
            device = (
                distributed.distributed_c10d._get_pg_default_device(self._group).type
                if own.is_meta
                else own.device.type
            )
            self._mesh = DeviceMesh.from_group(self._group, device)
        return as_dtensor(own, self._mesh, [Shard(0)], (numel,), (1,))

    def _buckets(self) -> Iterator[list[_Slice]]:
        """Slices of one device and dtype, in the model's order, as many as are exchanged at once."""
        for _, alike in groupby(self._slices, lambda one: (one.whole().dtype, one.whole().device)):
            bucket: list[_Slice] = []
            for one in alike:
                if bucket and sum(other.chunk for other in bucket) + one.chunk > _TOGETHER // self._ranks:
                    yield bucket
                    bucket = []
                bucket.append(one)
            yield bucket
