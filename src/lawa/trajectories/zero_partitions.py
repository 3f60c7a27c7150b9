"""DeepSpeed's ZeRO-1: how ranks share a group of parameters, and the layouts in which they saved their shares.

A group is its parameters' elements one after the other, N in all, padded and cut into sub-partitions of S elements.
Of R ranks, rank r has sub-partitions r, R + r, 2R + r, …: one a communication interval, or one in all.

    stage1.py          local_sub_partitions_of_fp32_groups [group][interval]: EleutherAI/DeeperSpeed eb7f5cff, which
                       gpt-neox v1.0, Pythia's trainer, requires
    stage_1_and_2.py   single_partition_of_fp32_groups [group], one interval: DeeperSpeed v2.0 457850dc and DeepSpeed to
                       0.19; bf16_optimizer.py writes the same

Elastic checkpoints (`base_optimizer_state` by group, and by interval) are saved without padding; rigid ones have
torch's state dict, and may have it. Padding only follows the N elements, so both are read alike: by where a stretch
begins, up to N. `round_robin_gradients` orders a group otherwise, and MoE and ZeRO-3 share it otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lawa.errors import LawaError
from lawa.trajectories.converted import MASTER, MOMENTS
from lawa.trajectories.native_files import load

_FILE = re.compile(r"((?:bf16_|fp16_)?)zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")
_MASTERS = ("local_sub_partitions_of_fp32_groups", "single_partition_of_fp32_groups")


@dataclass(frozen=True)
class Stretch:
    """Elements of a group that one rank has.

    group, of    which group, and of how many
    start        where in the group its first element is
    tensors      {MASTER and each of MOMENTS: flat, fp32}, without padding
    step         Adam's count, where it was saved
    loss_scaler  the rank's, as it was pickled
    """

    file: Path
    group: int
    of: int
    start: int
    tensors: dict[str, Tensor]
    step: float | None
    loss_scaler: Any

    @property
    def stop(self) -> int:
        return self.start + len(self.tensors[MASTER])


def files_of(native: Path) -> list[list[Path]]:
    """[model-parallel rank][data-parallel rank]; [] where there are none, LawaError where one of them is missing."""
    found = {
        (int(match[3]), int(match[2])): entry for entry in native.iterdir() if (match := _FILE.fullmatch(entry.name))
    }
    if not found:
        return []
    models, ranks = 1 + max(model for model, _ in found), 1 + max(rank for _, rank in found)
    prefix = next(iter(found.values())).name.partition("zero")[0]
    for model, rank in ((model, rank) for model in range(models) for rank in range(ranks)):
        if (model, rank) not in found:
            raise _missing(native, f"{prefix}zero_pp_rank_{rank}_mp_rank_{model:02}_optim_states.pt")
    return [[found[model, rank] for rank in range(ranks)] for model in range(models)]


def stretches(files: Sequence[Path], sizes: Mapping[int, Sequence[int]]) -> Iterator[Stretch]:
    """Everything of the groups, each element once, rank by rank; one rank's file is open at a time.

    files  of all data-parallel ranks, in their order
    sizes  {how many groups there may be: the elements of each}
    """
    lengths: list[int] = []  # S of every group
    for rank, file in enumerate(files):
        state = _state(file)
        _check_count(file, state, len(files))
        groups = _groups(file, state)
        if len(groups) not in sizes:
            raise LawaError(
                f"{file} has {len(groups)} groups of parameters, where GPT-NeoX makes {' or '.join(map(str, sizes))}; "
                "its state is not converted"
            )
        lengths = lengths or [len(shares[0][0][MASTER]) for shares in groups]
        for group, (shares, length, size) in enumerate(zip(groups, lengths, sizes[len(groups)], strict=True)):
            reach = len(shares) * len(files) * length
            if reach < size:
                raise LawaError(
                    f"{file}: group {group} of the optimizer has {reach} elements, and the layer files {size}; they "
                    "are not of the same model: fetch them again"
                )
            for interval, (tensors, step) in enumerate(shares):
                start = (interval * len(files) + rank) * length
                held = max(0, min(length, size - start))
                short = next((key for key, tensor in tensors.items() if len(tensor) < held), None)
                if short:
                    raise LawaError(
                        f"{file}: {short} of group {group} has {len(tensors[short])} elements where {held} were "
                        "expected; it is partitioned as nothing here knows, so it is not converted"
                    )
                if tensors[MASTER][held:].any():
                    raise LawaError(
                        f"{file}: group {group} of the optimizer has weights beyond the {size} of the layer files; one "
                        "of those is missing: fetch the whole checkpoint"
                    )
                own = {key: tensor[:held] for key, tensor in tensors.items()}
                yield Stretch(file, group, len(groups), start, own, step, state.get("loss_scaler"))


def _state(file: Path) -> Mapping[str, Any]:
    state = load(file).get("optimizer_state_dict")
    if not isinstance(state, Mapping) or not any(name in state for name in _MASTERS):
        held = f" ({', '.join(map(str, list(state)[:5]))})" if isinstance(state, Mapping) else ""
        raise LawaError(f"{file} holds no partition of ZeRO-1{held}; other optimizers' state is not converted")
    return state


def _check_count(file: Path, state: Mapping[str, Any], ranks: int) -> None:
    saved = state.get("partition_count", ranks)
    for count in saved if isinstance(saved, list | tuple) else (saved,):
        if count != ranks:
            raise LawaError(f"{file} is one of {count} partitions, and {ranks} are here; fetch the whole checkpoint")


Share = tuple[dict[str, Tensor], float | None]  # masters and moments, flat, and Adam's count


def _groups(file: Path, state: Mapping[str, Any]) -> list[list[Share]]:
    """[group][interval] of what the rank has."""
    masters: Any = next(state[name] for name in _MASTERS if name in state)
    try:
        base: Any = state["base_optimizer_state"]
        counted = state.get("base_optimizer_state_step")
        shares = []
        for group, held in enumerate(masters):
            own = list(held) if isinstance(held, list | tuple) else [held]
            shares.append([_share(one, *_adam(base, group, at, counted)) for at, one in enumerate(own)])
    except (KeyError, IndexError, TypeError, AttributeError) as bad:
        raise LawaError(
            f"{file} does not hold Adam's moments where ZeRO-1 has them ({bad!r:.100}); its state is not converted"
        ) from None
    return shares


def _adam(base: Any, group: int, interval: int, counted: Any) -> tuple[Mapping[str, Any], Any]:
    """(Adam's state of a sub-partition, its count or None)."""
    if isinstance(base, Mapping):
        of = base["param_groups"][group]
        state = base["state"][of["params"][interval]]
        counted = of.get("step", counted)
    else:
        state = base[group] if isinstance(base[group], Mapping) else base[group][interval]
    return state, state.get("step", counted)


def _share(master: Tensor, state: Mapping[str, Any], step: Any) -> Share:
    tensors = {MASTER: master.detach(), **{key: state[key] for key in MOMENTS}}
    return {key: tensor.view(-1) for key, tensor in tensors.items()}, None if step is None else float(step)


def _missing(native: Path, name: str) -> LawaError:
    return LawaError(f"{native} lacks {name}; fetch the whole checkpoint")
