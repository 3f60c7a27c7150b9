"""Adam's moments on a replacement: keep, reset or average.

keep     m, v and the step count stay as they are (the default)
reset    m, v and the step count become zero, as in a new optimizer; the learning-rate schedule is untouched
average  m and v are captured with the weights and averaged with the same coefficients: three times the memory
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lawa.averaging.layout import Entry, local
from lawa.errors import LawaError

MOMENTS = ("exp_avg", "exp_avg_sq")
_KNOWN = {*MOMENTS, "max_exp_avg_sq", "exp_inf", "momentum_buffer", "step"}


# Where optimizers keep fp32 masters that they write back over the parameters: Megatron's and apex's. Those of DeepSpeed
# are averaged themselves (zero.py).
_MASTERS = ("shard_fp32_from_float16_groups", "fp32_from_float16_groups", "fp32_from_fp16_groups")


def refuse_masters(optimizer: Any) -> None:
    """Raise for an optimizer with masters of its own: captures would miss them, its next step undo a replacement."""
    for attribute in _MASTERS:
        if hasattr(optimizer, attribute) or hasattr(getattr(optimizer, "_amp_stash", None), attribute):
            raise LawaError(
                f"{type(optimizer).__name__} keeps fp32 masters of its own ({attribute}), which this version does not "
                "average; use an optimizer that trains the parameters themselves (FSDP2 keeps them in fp32)"
            )


def parameters_of(optimizers: Iterable[torch.optim.Optimizer]) -> Iterator[Tensor]:
    """Every parameter that they train."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            yield from group["params"]


def moment_entries(parameters: Mapping[str, nn.Parameter], optimizers: Sequence[torch.optim.Optimizer]) -> list[Entry]:
    """Entries `exp_avg.NAME` and `exp_avg_sq.NAME` of every parameter that the optimizers train."""
    require_adam(optimizers)
    trains = {id(parameter): optimizer for optimizer in optimizers for parameter in parameters_of([optimizer])}
    entries = []
    for moment in MOMENTS:
        for name, parameter in parameters.items():
            if id(parameter) in trains:
                current = partial(moment_of, trains[id(parameter)], parameter, moment)
                made = current()
                dtype = parameter.dtype if made is None else made.dtype
                entries.append(Entry(f"{moment}.{name}", parameter, current, dtype, True))
    return entries


@torch.no_grad()
def reset(parameters: Mapping[str, Tensor], optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Zero the state of every parameter in place, which is the state of an optimizer that has not stepped.

    An optimizer with a state of another kind is refused before anything is changed.
    """
    states = [
        (name, optimizer, optimizer.state[parameter])
        for optimizer in optimizers
        for name, parameter in parameters.items()
        if parameter in optimizer.state
    ]
    for name, optimizer, state in states:
        unknown = set(state) - _KNOWN
        if unknown:
            raise LawaError(
                f"moments='reset' does not know {type(optimizer).__name__}'s state {sorted(unknown)} of {name!r}; "
                "choose 'keep'"
            )
    for _, _, state in states:
        for key, value in state.items():
            if isinstance(value, Tensor):
                local(value).zero_()
            elif value is not None:
                state[key] = 0


def require_adam(optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """Raise LawaError for an optimizer that keeps no such moments."""
    for optimizer in optimizers:
        if "betas" not in optimizer.defaults:
            raise _not_adam(optimizer)


def moment_of(optimizer: torch.optim.Optimizer, parameter: Tensor, moment: str) -> Tensor | None:
    """None until the parameter's first step."""
    state = optimizer.state.get(parameter, {})
    if state and moment not in state:
        raise _not_adam(optimizer)
    return state.get(moment)


def _not_adam(optimizer: torch.optim.Optimizer) -> LawaError:
    return LawaError(
        f"moments='average' needs Adam's {' and '.join(MOMENTS)}, which {type(optimizer).__name__} does not keep; "
        "choose 'keep'"
    )
