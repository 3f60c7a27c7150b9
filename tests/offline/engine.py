"""Checkpoints written by the real safetensors, averaged by the engine, and what the twins say of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import twins
from lawa.checkpoints.catalog import Catalog
from lawa.checkpoints.formats import catalog
from lawa.offline import files_kernel
from lawa.offline.execute import lay_out, run
from lawa.offline.plan import Mean, Plan, make_plan
from lawa.offline.policy import Policy, match

State = Mapping[str, Tensor]
PATHS = ["compiled", "torch"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def write(directory: Path, state: State, *, shard_of: Mapping[str, int] | None = None) -> Catalog:
    """A checkpoint in one file, or its tensors in the shards that are told."""
    directory.mkdir(parents=True)
    if shard_of is None:
        save_file(dict(state), directory / "model.safetensors")
    else:
        names = {name: f"model-{shard_of[name]}.safetensors" for name in state}
        for file in set(names.values()):
            save_file({name: state[name] for name in state if names[name] == file}, directory / file)
        index = {"metadata": {}, "weight_map": names}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return read(directory)


def read(directory: Path, label: str | None = None) -> Catalog:
    return catalog(directory, label=label or directory.name, scratch=_no_scratch)


def _no_scratch() -> Path:
    raise AssertionError("safetensors are read in place")


def tie(one: Catalog, name: str, other: str) -> Catalog:
    """As .bin files show tied tensors: under both names."""
    return replace(one, tensors={**one.tensors, other: one.tensors[name]})


def planned(catalogs: Sequence[Catalog], means: Sequence[Mean] | None = None, **settings: Any) -> Plan:
    policy = settings.pop("policy", Policy())
    means = means or [Mean("", tuple(range(len(catalogs))), None)]
    return make_plan(catalogs, match(catalogs, policy), means, **settings)


def carry_out(plan: Plan, folder: Path, *, threads: int = 2, **settings: Any) -> list[dict[str, Tensor]]:
    """What each output holds, as the real safetensors read it."""
    outputs = [folder / f"output{index}" for index in range(len(plan.means))]
    for output in outputs:
        output.mkdir(parents=True)
        lay_out(plan, output)
    done: list[int] = []
    run(plan, outputs, range(len(plan.items)), threads=threads, done=done.append, **settings)
    assert sorted(done) == list(range(len(plan.items)))
    return [loaded(output) for output in outputs]


def loaded(output: Path) -> dict[str, Tensor]:
    return {name: tensor for file in output.glob("*.safetensors") for name, tensor in load_file(file).items()}


@contextmanager
def path(name: str) -> Iterator[None]:
    """The way that the work goes: the compiled loop where it serves, or torch everywhere."""
    with mock.patch.object(files_kernel, "_library", files_kernel._library if name == "compiled" else None):
        yield


def twin(
    thetas: Sequence[Tensor], c: Sequence[float] | None, out: torch.dtype, accumulate: str = "float32"
) -> np.ndarray:
    """The literal mean: fp32 sums, or fp64 on request and wherever a snapshot is fp64; rounded once."""
    wide = accumulate == "float64" or any(theta.dtype == torch.float64 for theta in thetas)
    values = twins.mean([twins.array(theta) for theta in thetas], c, np.float64 if wide else np.float32)
    return twins.rounded(values, out)


def same(found: Tensor, expected: np.ndarray) -> bool:
    return twins.same_bits(twins.array(found), expected.astype(twins.array(found).dtype))


def draws(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
