"""Whether an average is finite: looked for on the average, not at each capture, and agreed by all ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed

from lawa.averaging.layout import Part
from lawa.averaging.mean import block_size


def finite_everywhere(parts: Sequence[Part]) -> bool:
    """Whether every rank's part is finite: one scalar all-reduce where there are several ranks."""
    flags = [all_finite(flat) for _, flat in parts]
    finite = torch.stack([flag.to(flags[0].device) for flag in flags]).all()
    if distributed.is_available() and distributed.is_initialized():
        # On the model's device, which its process group can reduce on; NCCL's cannot where masters are offloaded.
        device = parts[0][0].device
        if device.type == "cpu" and distributed.get_backend() == "nccl":
            device = torch.device("cuda", torch.cuda.current_device())
        finite = finite.to(device, torch.int32)
        distributed.all_reduce(finite, op=distributed.ReduceOp.MIN)
    return bool(finite)


def first_non_finite(parts: Sequence[Part]) -> str:
    """The name of the first tensor with an inf or nan on this rank."""
    for group, flat in parts:
        for entry, view in zip(group.entries, group.views(flat), strict=True):
            if not torch.isfinite(view).all():
                return entry.name
    return "another rank's shard"


@torch.no_grad()
def all_finite(flat: Tensor) -> Tensor:
    """Whether a 1-D tensor holds neither inf nor nan: a scalar bool tensor on its device, without a host sync."""
    finite = torch.ones((), dtype=torch.bool, device=flat.device)
    for part in flat.split(block_size(flat.device)):
        if part.numel():
            low, high = torch.aminmax(part)  # both become nan where any element is
            finite &= torch.isfinite(low) & torch.isfinite(high)
    return finite
