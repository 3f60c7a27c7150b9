"""DeepSpeed's ZeRO: what is averaged is this rank's partition of the fp32 masters, where it lies.

A parameter's fragment is the run of its flattened elements that this rank steps. Its entry is NAME[START:STOP], so no
two ranks have one of the same name; what ZeRO pads its partitions with, and leaves uninitialised, is in none of them.
After a write the parameters are made from the masters as the optimizer's own step does it: the only collective here.

    ZeRO 1 and 2; ZeRO 1 in bf16 with fp32 gradients    a partition for each group of parameters, laid end to end
    ZeRO 3                                              one for each sub-group: an equal share of every parameter
    stage 0 in fp16 or bf16                             masters of whole parameters, the same ones on every rank
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, distributed, nn

from lawa.averaging import optimizer_state
from lawa.averaging.layout import Entry
from lawa.averaging.parameters import ModelTensors
from lawa.errors import LawaError

# Where DeepSpeed's optimizers have their masters.
_PARTITIONS = ("single_partition_of_fp32_groups", "fp32_groups_flat_partition")
_SHARES = "fp32_partitioned_groups_flat"
_WHOLE = ("fp32_groups_flat", "fp32_groups")


def is_zero(optimizer: Any) -> bool:
    """Whether it is an optimizer of DeepSpeed's that keeps masters."""
    return any(hasattr(optimizer, attribute) for attribute in (*_PARTITIONS, _SHARES, *_WHOLE))


def _masters_of(zero: Any) -> list[Tensor]:
    attribute = next(attribute for attribute in (*_PARTITIONS, _SHARES, *_WHOLE) if hasattr(zero, attribute))
    return [one for group in getattr(zero, attribute) for one in ([group] if isinstance(group, Tensor) else group)]


@dataclass(frozen=True)
class _Fragment:
    """Elements [start, start + numel) of a flattened parameter: those of its master from `offset` on."""

    master: Tensor
    offset: int
    start: int
    numel: int

    def of(self, flat: Tensor) -> Tensor:
        """Its part of a tensor that lies as the master does."""
        return flat.detach().view(-1).narrow(0, self.offset, self.numel)

    def entry(self, name: str, current: Callable[[], Tensor | None], dtype: torch.dtype, *, moment: bool) -> Entry:
        # A reference of one element, not the master's memory: engine.offload_states() frees that.
        reference = torch.empty(1, dtype=dtype, device=self.master.device).expand(self.numel)
        return Entry(f"{name}[{self.start}:{self.start + self.numel}]", reference, current, dtype, moment)


class ZeroTensors(ModelTensors):
    """A Binding of a DeepSpeed optimizer's masters. Parameters that it does not step never move, and are left out.

    zero  the optimizer of a DeepSpeed engine
    """

    def __init__(self, model: nn.Module, zero: Any, *, buffers: str = "latest") -> None:
        _refuse_unsupported(zero)
        super().__init__(model, buffers=buffers)
        self.zero = zero
        self._masters = _masters_of(zero)
        found = {id(parameter): fragment for parameter, fragment in _fragments(zero, self._masters)}
        self.fragments = {
            name: found[id(parameter)] for name, parameter in self.parameters.items() if id(parameter) in found
        }
        if not self.fragments:  # nothing but padding; yet this rank takes part in what all ranks agree on
            self.fragments[next(iter(self.parameters))] = _Fragment(self._masters[0], 0, 0, 0)
        ranks = f"partitions of {distributed.get_world_size()} ranks"
        self.form = f"{type(zero).__name__}'s {'masters' if _is_whole(zero) else ranks}"
        of_buffers = [entry for entry in self.trained if entry.name not in self.parameters]
        self.trained = [
            fragment.entry(name, partial(fragment.of, fragment.master), fragment.master.dtype, moment=False)
            for name, fragment in self.fragments.items()
        ] + of_buffers

    def check_bound(self) -> None:
        super().check_bound()
        if [*map(id, _masters_of(self.zero))] != [*map(id, self._masters)]:
            raise LawaError("DeepSpeed has made other masters since the averager was made; make a new averager")
        if getattr(self.zero, "offloaded_states", None):
            raise LawaError("the engine's states are offloaded; call engine.reload_states() before an update or a swap")

    @torch.no_grad()
    def written(self) -> None:
        """The parameters become their masters, rounded to their dtype, on every rank (collective)."""
        if _is_whole(self.zero):
            for parameter, fragment in _fragments(self.zero, self._masters):
                parameter.copy_(fragment.of(fragment.master).view_as(parameter))
        elif hasattr(self.zero, _SHARES):
            self.zero.checkpoint_event_prologue()  # lets go of what is gathered: it is older than what was written
            for index in range(len(self._masters)):
                self.zero._reassign_or_swap_out_partitioned_parameters(index)
            self.zero.checkpoint_event_epilogue()  # gathers the parameters that stay gathered
        else:
            self.zero.update_lp_params()

    def stepped_by_optimizers(self) -> bool:
        """DeepSpeed steps an optimizer of its own making, group by group: no hook of it says when."""
        return False

    def moments(self) -> list[Entry]:
        optimizer_state.require_adam(self._steppers())
        entries = []
        for moment in optimizer_state.MOMENTS:
            for name, fragment in self.fragments.items():
                current = partial(self._moment, fragment, moment)
                made = current()
                dtype = fragment.master.dtype if made is None else made.dtype
                entries.append(fragment.entry(f"{moment}.{name}", current, dtype, moment=True))
        return entries

    def reset_moments(self) -> None:
        masters = {f"master {index}": master for index, master in enumerate(self._masters)}
        optimizer_state.reset(masters, self._steppers())
        for optimizer in self._steppers():
            for group in optimizer.param_groups:
                if "step" in group:  # DeepSpeed's FusedAdam counts here
                    group["step"] = 0

    def _moment(self, fragment: _Fragment, moment: str) -> Tensor | None:
        for optimizer in self._steppers():
            made = optimizer_state.moment_of(optimizer, fragment.master, moment)
            if made is not None:
                return fragment.of(made)
        return None

    def _steppers(self) -> Sequence[torch.optim.Optimizer]:
        """The optimizers that step the masters: two where a part of them is offloaded."""
        both = (self.zero.optimizer, getattr(self.zero, "backup_optimizer", None))
        return [optimizer for optimizer in both if optimizer is not None]


def _is_whole(zero: Any) -> bool:
    return any(hasattr(zero, attribute) for attribute in _WHOLE)


def _fragments(zero: Any, masters: Sequence[Tensor]) -> Iterator[tuple[nn.Parameter, _Fragment]]:
    """Every parameter that has a fragment on this rank, with it."""
    if _is_whole(zero):
        yield from _wholes(zero, masters)
    elif hasattr(zero, _SHARES):
        yield from _shares(zero, masters)
    else:
        yield from _partitions(zero, masters)


def _partitions(zero: Any, masters: Sequence[Tensor]) -> Iterator[tuple[nn.Parameter, _Fragment]]:
    """Of parameters end to end, this rank has one partition of as many as there are ranks."""
    groups = zero.round_robin_bit16_groups if hasattr(zero, "round_robin_bit16_groups") else zero.bf16_groups
    aligned = getattr(zero, "round_robin_bit16_offsets", None)  # where it leaves gaps between parameters
    for index, (group, master) in enumerate(zip(groups, masters, strict=True)):
        begin = distributed.get_rank() * master.numel()
        for parameter, offset in zip(group, aligned[index] if aligned else _end_to_end(group), strict=True):
            start, stop = max(offset, begin), min(offset + parameter.numel(), begin + master.numel())
            if start < stop:
                yield parameter, _Fragment(master, start - begin, start - offset, stop - start)


def _shares(zero: Any, masters: Sequence[Tensor]) -> Iterator[tuple[nn.Parameter, _Fragment]]:
    """Of every parameter this rank has one share of as many as there are ranks; the last ones are padded."""
    for group, master in zip(zero.fp16_groups, masters, strict=True):
        offset = 0
        for parameter in group:
            share = parameter.ds_tensor.ds_numel
            start = distributed.get_rank() * share
            if start < parameter.ds_numel:
                yield parameter, _Fragment(master, offset, start, min(share, parameter.ds_numel - start))
            offset += share


def _wholes(zero: Any, masters: Sequence[Tensor]) -> Iterator[tuple[nn.Parameter, _Fragment]]:
    """Each parameter is whole: in a flat master of its group, or in one of its own."""
    parameters = [one for group in zero.fp16_groups for one in group]
    if hasattr(zero, "fp32_groups"):
        for parameter, master in zip(parameters, masters, strict=True):
            yield parameter, _Fragment(master, 0, 0, parameter.numel())
        return
    for group, master in zip(zero.fp16_groups, masters, strict=True):
        for parameter, offset in zip(group, _end_to_end(group), strict=True):
            yield parameter, _Fragment(master, offset, 0, parameter.numel())


def _end_to_end(group: Sequence[nn.Parameter]) -> list[int]:
    return [0, *accumulate(one.numel() for one in group)][:-1]


def _refuse_unsupported(zero: Any) -> None:
    name = type(zero).__name__
    if getattr(zero, "swap_optimizer", False) or getattr(zero, "params_in_nvme_and_cpu", False):
        raise LawaError("DeepSpeed keeps its masters or parameters on NVMe, which is not supported; offload to 'cpu'")
    if getattr(zero, "zenflow", False) or "SuperOffload" in name:
        raise LawaError(f"{name} steps its masters behind training, which is not supported; use plain ZeRO-Offload")
    if any(group.get("moe") for group in zero.param_groups):
        raise LawaError("the model has experts that DeepSpeed spreads over ranks, which is not supported")
    for group in _process_groups(zero):
        if distributed.get_world_size(group) != distributed.get_world_size():
            raise LawaError(
                f"{name} partitions among {distributed.get_world_size(group)} of {distributed.get_world_size()} ranks "
                "(tensor, pipeline or expert parallelism, MiCS), which is not supported; use data parallelism alone"
            )


def _process_groups(zero: Any) -> Sequence[Any]:
    """Those that the masters are partitioned in; at stage 0, those that have the same ones."""
    for attribute in ("sub_group_process_groups", "real_dp_process_group"):
        if hasattr(zero, attribute):
            return getattr(zero, attribute)
    return [] if zero.mpu is None else [zero.mpu.get_data_parallel_group()]
