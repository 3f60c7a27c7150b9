"""GPT-NeoX's checkpoints: ZeRO-1's partitions of all ranks, put together and named by the layer files.

    layer_LL-model_MM-model_states.pt              a layer's weights (fp16 or bf16) of model-parallel rank MM
    mp_rank_MM_model_states.pt                     iteration, schedule, skipped updates
    zero_pp_rank_R_mp_rank_MM_optim_states.pt      data-parallel rank R's share of masters and moments

The optimizer has the weights that decay in its first group, norms and biases in its second; in a group they come in
the order of the model's modules, which is that of the layer files and of the names in them (EleutherAI/gpt-neox v1.0
71df4d50, megatron/model/utils.py get_params_for_weight_decay_optimization). zero_partitions.py has how a group is
shared. No file says which weight lies where, so every master is rounded to its weight's dtype and must be that weight:
an order or a layout that is not this one is refused, never misread.

Model-parallel ranks are merged as their weights are (layouts/neox.py). Norms are kept alike by all ranks: where they
have drifted apart, means of masters and moments are taken, and `Converted.apart` says so. A bias after a row-parallel
product is added by every rank, so the model's is their sum. The moments are those of its gradient, which each rank saw
whole: the ranks' mean. But each rank made a whole step of Adam with it, so the sum moved by as many steps as there are
ranks, where a single bias moves by one: gone on with, such a bias learns that much slower than it did.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lawa.checkpoints.layouts.neox import Rule, first_missing, last_norm, place_of
from lawa.errors import LawaError
from lawa.trajectories import neox_config
from lawa.trajectories.converted import MASTER, Converted, Outputs
from lawa.trajectories.native_files import load, load_tensors
from lawa.trajectories.zero_partitions import Stretch, files_of, stretches

_LAYER = re.compile(r"layer_(\d+)-model_(\d+)-model_states\.pt")
_INITIAL = 1  # the step with zero gradients by which DeepSpeed makes Adam's state
_ALIKE = ("mean", "sum")  # rules of weights that each model-parallel rank has whole


@dataclass(frozen=True)
class Parameter:
    """A weight as one model-parallel rank has it.

    name    in transformers' files
    rule    how ranks are merged
    weight  as the layer file has it, a map of that
    """

    name: str
    rule: Rule
    file: Path
    weight: Tensor

    @property
    def decays(self) -> bool:
        return self.rule != "mean" and not self.name.endswith(".bias")


def is_here(native: Path) -> bool:
    return bool(files_of(native))


def write(native: Path, folder: Path, config: Path | None) -> Converted:
    partitions = files_of(native)
    models = _layers(native, len(partitions))
    states = load(native / "mp_rank_00_model_states.pt")
    shapes = _shapes(models)
    outputs = Outputs(folder, shapes, model_type="gpt_neox")
    alike: dict[tuple[str, str], list[Tensor]] = {}
    step, scaler = None, None
    for model, (parameters, files) in enumerate(zip(models, partitions, strict=True)):
        groups = _groups(parameters)
        sizes = {count: [sum(one.weight.numel() for one in group) for group in groups[count]] for count in groups}
        for stretch in stretches(files, sizes):
            _scatter(stretch, groups[stretch.of][stretch.group], model, len(models), outputs, alike)
            step, scaler = stretch.step, stretch.loss_scaler
    apart = _merge(alike, {parameter.name: parameter.rule for parameter in models[0]}, outputs)
    counts = _counts(native, states)
    if step is None:
        step = float(_INITIAL + counts["update"] - counts["skipped"])
    for parameter in models[0]:
        outputs.tensor("step", parameter.name).fill_(step)
    return Converted(
        format="neox",
        step=step,
        scaler=_scaler(scaler),
        config=neox_config.write(native, folder, config, shapes),
        apart=apart,
        **counts,
    )


def _layers(native: Path, models: int) -> list[list[Parameter]]:
    """Of every model-parallel rank its parameters, in the order of the model's modules."""
    found = {(int(m[1]), int(m[2])): entry for entry in native.iterdir() if (m := _LAYER.fullmatch(entry.name))}
    if not found:
        raise LawaError(f"{native} lacks GPT-NeoX's layer files (layer_00-model_00-model_states.pt, …); fetch them")
    numbers = sorted({layer for layer, _ in found})
    ranks = [
        {layer: load_tensors(native / f"layer_{layer:02}-model_{rank:02}-model_states.pt") for layer in numbers}
        for rank in range(models)
    ]
    norm = last_norm(ranks[0])
    if norm is None:
        raise LawaError(f"{native} lacks the layer file of the last norm (norm.weight); fetch the whole checkpoint")
    missing = first_missing(numbers, norm)
    if missing is not None:
        raise LawaError(f"{native} lacks layer_{missing:02}-model_00-model_states.pt; fetch the whole checkpoint")
    return [
        [
            Parameter(*place, found[layer, rank], weight)
            for layer, tensors in layers.items()
            for name, weight in tensors.items()
            if (place := _place(found[layer, rank], layer, name))[1] != "first"
        ]
        for rank, layers in enumerate(ranks)
    ]


def _place(file: Path, layer: int, name: str) -> tuple[str, Rule]:
    place = place_of(layer, name)
    if place is None:
        raise LawaError(f"{file} has {name!r}, which transformers' GPTNeoX does not have; its state is not converted")
    return place


def _shapes(models: Sequence[Sequence[Parameter]]) -> dict[str, tuple[int, ...]]:
    """Of the merged weights."""
    shapes = {}
    for parameter in models[0]:
        shape = list(parameter.weight.shape)
        if parameter.rule not in _ALIKE:
            shape[_split(parameter.rule)] *= len(models)
        shapes[parameter.name] = tuple(shape)
    own = [[(parameter.name, parameter.weight.shape) for parameter in parameters] for parameters in models]
    for rank, other in enumerate(own):
        if other != own[0]:
            raise LawaError(
                f"{models[rank][0].file.parent}: the layer files of model_{rank:02} and model_00 have different "
                "tensors, so they are not of the same model; fetch them again"
            )
    return shapes


def _split(rule: Rule) -> int:
    """The dimension along which ranks share a weight."""
    return 1 if rule == "columns" else 0


def _groups(parameters: Sequence[Parameter]) -> dict[int, list[list[Parameter]]]:
    """{how many groups the optimizer has: these}; without weight decay NeoX makes one."""
    decaying = [parameter for parameter in parameters if parameter.decays]
    return {1: [list(parameters)], 2: [decaying, [one for one in parameters if not one.decays]]}


def _scatter(
    stretch: Stretch,
    group: Sequence[Parameter],
    model: int,
    models: int,
    outputs: Outputs,
    alike: dict[tuple[str, str], list[Tensor]],
) -> None:
    """Write a stretch of a group where its parameters lie; raise where its masters are not their weights."""
    for parameter, at, begin, length in _overlaps(stretch, group):
        values = {key: tensor[begin : begin + length] for key, tensor in stretch.tensors.items()}
        weight = parameter.weight.reshape(-1)[at : at + length]
        if not torch.equal(values[MASTER].to(weight.dtype), weight):
            raise LawaError(
                f"{stretch.file}: its masters of {parameter.name!r} do not round to the weights in "
                f"{parameter.file.name}; the files are of different checkpoints, or partitioned in a way that is not "
                "known here: fetch them again, or branch with fresh moments"
            )
        for key, one in values.items():
            if parameter.rule in _ALIKE and models > 1:
                ranks = alike.setdefault((key, parameter.name), [])
                if len(ranks) == model:
                    ranks.append(torch.empty(parameter.weight.shape))
                target = ranks[model]
            else:
                target = outputs.tensor(key, parameter.name)
                if models > 1:
                    size = parameter.weight.shape[_split(parameter.rule)]
                    target = target.narrow(_split(parameter.rule), model * size, size)
            _put(target, at, one)


def _overlaps(stretch: Stretch, group: Sequence[Parameter]) -> Iterator[tuple[Parameter, int, int, int]]:
    """(parameter, where in it, where in the stretch, elements) of every parameter that the stretch has some of."""
    ends = accumulate(parameter.weight.numel() for parameter in group)
    for parameter, end in zip(group, ends, strict=True):
        first = end - parameter.weight.numel()
        begin, stop = max(first, stretch.start), min(end, stretch.stop)
        if begin < stop:
            yield parameter, begin - first, begin - stretch.start, stop - begin


def _put(target: Tensor, at: int, values: Tensor) -> None:
    """target's elements `at` and on, row by row, ← values; without a copy where target is a part of wider rows."""
    if target.is_contiguous():
        target.view(-1)[at : at + len(values)].copy_(values)
        return
    width = target.shape[1]
    row, column = divmod(at, width)
    while len(values):
        rows = max(1, len(values) // width) if column == 0 else 1
        taken = min(len(values), rows * width - column)
        shape = (rows, width) if taken == rows * width else (1, taken)
        target[row : row + shape[0], column : column + shape[1]].copy_(values[:taken].view(shape))
        values, row, column = values[taken:], row + rows, 0


def _merge(
    alike: Mapping[tuple[str, str], list[Tensor]], rules: Mapping[str, Rule], outputs: Outputs
) -> dict[str, float]:
    """Put together what each model-parallel rank has whole; {name: largest difference} of norms that differ."""
    apart = {}
    for (key, name), ranks in alike.items():
        exact = torch.stack(ranks).double()
        summed = key == MASTER and rules[name] == "sum"
        outputs.tensor(key, name).copy_(exact.sum(0) if summed else exact.mean(0))
        difference = float((exact - exact[0]).abs().max())
        if key == MASTER and not summed and difference:
            apart[name] = difference
    return apart


def _counts(native: Path, states: Mapping[str, Any]) -> dict[str, Any]:
    """Updates, skipped ones, and where the schedule stood.

    A skipped update counts as an iteration, and the schedule does not advance (EleutherAI/DeeperSpeed eb7f5cff,
    deepspeed/runtime/engine.py _take_model_step; gpt-neox v1.0, megatron/training.py train, learning_rates.py).
    """
    update = states.get("iteration", states.get("global_steps"))
    if not isinstance(update, int):
        raise LawaError(
            f"{native / 'mp_rank_00_model_states.pt'} does not say which iteration it is of; fetch it again"
        )
    scheduler = states.get("lr_scheduler")
    iterations = scheduler.get("num_iters") if isinstance(scheduler, Mapping) else None
    return {"update": update, "skipped": int(states.get("skipped_steps", 0)), "lr_iterations": iterations}


def _scaler(found: Any) -> dict[str, Any] | None:
    """DeepSpeed's DynamicLossScaler (eb7f5cff, deepspeed/runtime/fp16/loss_scaler.py) as LossScaler has it."""
    if not hasattr(found, "cur_hysteresis"):  # a static one, or none
        return None
    return {
        "scale_now": float(found.cur_scale),
        "hysteresis_left": int(found.cur_hysteresis),
        "update": int(found.cur_iter),
        "last_overflow": int(found.last_overflow_iter),
    }
