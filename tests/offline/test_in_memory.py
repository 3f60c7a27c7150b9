"""Averages in memory have the bits of those that `lawa.average` writes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import lawa
import twins
from lawa.checkpoints.formats import catalog
from lawa.checkpoints.named import named
from lawa.errors import LawaError, NonFiniteAverage, UsageError
from lawa.offline import in_memory
from lawa.offline.policy import Policy

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def state(step: int, dtype: torch.dtype) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(step)
    floats = {"w": (7, 5), "b": (3,), "empty": (0, 4), "scalar": ()}
    return {
        **{name: torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype) for name, shape in floats.items()},
        "layers.0.attention.bias": torch.ones(1, 1, 4, 4),
        "count": torch.arange(3) + step,
        "mask": torch.tensor([True, step % 2 == 0]),
    }


def written(folder: Path, states: list[dict[str, Tensor]], *, pickled: bool = False) -> list[Path]:
    paths = []
    for step, one in enumerate(states, 1):
        paths.append(folder / f"step{step}")
        paths[-1].mkdir(parents=True)
        if pickled:
            torch.save(one, paths[-1] / "pytorch_model.bin")
        else:
            save_file(one, paths[-1] / "model.safetensors")
    return paths


def loaded(path: Path) -> dict[str, Tensor]:
    def none() -> Path:
        raise AssertionError("these are read in place")

    return in_memory.load(named(catalog(path, scratch=none)))


def same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    assert found.keys() == expected.keys()
    return all(
        found[name].dtype == one.dtype and twins.same_bits(found[name].double(), one.double())
        for name, one in expected.items()
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("coefficients", ["uniform", "linear", [0.5, 0.25, 0.25]], ids=str)
@pytest.mark.parametrize("accumulate", ["float32", "float64"])
def test_the_bits_are_those_of_the_files(tmp_path, dtype, coefficients, accumulate):
    paths = written(tmp_path, [state(step, dtype) for step in range(3)])
    output = lawa.average(paths, output=tmp_path / "out", coefficients=coefficients, dtype=accumulate)
    snapshots = [loaded(path) for path in paths]
    made = in_memory.average(snapshots, coefficients, accumulate=accumulate)
    assert same(made, load_file(output / "model.safetensors"))
    assert made["count"].tolist() == [2, 3, 4]
    assert "layers.0.attention.bias" not in made


@pytest.mark.parametrize("out_dtype", ["float32", "bfloat16"])
def test_mixed_dtypes_options_and_policy_are_those_of_the_files(tmp_path, out_dtype):
    states = [state(0, torch.float16), state(1, torch.float32), state(2, torch.bfloat16)]
    paths = written(tmp_path, states)
    how = {"ignore": ("b",), "latest": ("scalar",), "buffers": "latest"}
    output = lawa.average(paths, output=tmp_path / "out", out_dtype=out_dtype, allow_duplicates=True, **how)
    made = in_memory.average([loaded(path) for path in paths], out_dtype=out_dtype, policy=Policy(**how))
    assert same(made, load_file(output / "model.safetensors"))
    assert made["w"].dtype == getattr(torch, out_dtype)
    assert made["scalar"].dtype == torch.bfloat16


def test_tied_tensors_are_averaged_once_and_stay_one(tmp_path):
    states = [state(step, torch.float32) for step in range(3)]
    for one in states:
        one["head"] = one["w"]
    paths = written(tmp_path, states, pickled=True)
    snapshots = [loaded(path) for path in paths]
    assert snapshots[0]["head"] is snapshots[0]["w"]
    made = in_memory.average(snapshots)
    assert made["head"] is made["w"]
    output = load_file(lawa.average(paths, output=tmp_path / "out") / "model.safetensors")
    assert made.keys() - output.keys() == {"head"}
    assert same({name: made[name] for name in output}, output)
    untied = in_memory.average(snapshots, policy=Policy(ties="untie"))
    assert untied["head"] is not untied["w"]
    assert torch.equal(untied["head"], made["w"])


def test_snapshots_stay_as_they_are(tmp_path):
    paths = written(tmp_path, [state(step, torch.float32) for step in range(3)])
    snapshots = [loaded(path) for path in paths]
    before = [{name: tensor.clone() for name, tensor in one.items()} for one in snapshots]
    first = in_memory.average(snapshots)
    assert all(torch.equal(one[name], was[name]) for one, was in zip(snapshots, before, strict=True) for name in was)
    assert same(in_memory.average(snapshots), first)


def test_of_one_what_averages_of_it_have(tmp_path):
    [path] = written(tmp_path, [state(1, torch.bfloat16)])
    snapshot = loaded(path)
    kept = in_memory.kept(snapshot)
    assert snapshot.keys() - kept.keys() == {"layers.0.attention.bias"}
    assert all(kept[name] is snapshot[name] for name in kept)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int8, torch.bool, torch.float8_e4m3fn], ids=str)
def test_what_is_loaded_is_what_was_stored(tmp_path, dtype):
    tensor = (torch.randn(1000) * 3).to(dtype)
    [path] = written(tmp_path, [{"w": torch.ones(2), "x": tensor}])
    assert torch.equal(loaded(path)["x"].view(torch.uint8), tensor.view(torch.uint8))


def test_snapshots_that_do_not_belong_together_are_named(tmp_path):
    one, other = state(0, torch.float32), state(1, torch.float32)
    del other["b"]
    with pytest.raises(LawaError, match="early has a tensor 'b' that late lacks"):
        in_memory.average([one, other], labels=["early", "late"])
    other["b"] = torch.ones(4)
    with pytest.raises(LawaError, match=r"shape \(3,\) in snapshot 1 of 2 and \(4,\) in snapshot 2 of 2"):
        in_memory.average([one, other])


def test_non_finite_averages_are_refused_by_name():
    one, other = {"w": torch.ones(3)}, {"w": torch.tensor([1.0, float("nan"), 0.0])}
    with pytest.raises(NonFiniteAverage, match="'w' of late has values that are not finite"):
        in_memory.average([one, other], labels=["early", "late"])
    assert in_memory.average([one, other], allow_non_finite=True)["w"][1].isnan()
    large = {"w": torch.full((2,), 3e38)}
    with pytest.raises(NonFiniteAverage, match="overflow"):
        in_memory.average([large, large], "uniform")


def test_settings_that_cannot_be():
    one = {"w": torch.ones(3)}
    with pytest.raises(UsageError, match="'bfloat16', of the sums"):
        in_memory.average([one, one], accumulate="bfloat16")
    with pytest.raises(LawaError, match="3 coefficients were given for 2 snapshots"):
        in_memory.average([one, one], [0.2, 0.3, 0.5])


def test_a_file_that_changes_or_ends_is_an_error(tmp_path):
    [path] = written(tmp_path, [state(0, torch.float32)])
    one = named(catalog(path, scratch=lambda: path))
    os.utime(path / "model.safetensors", ns=(1, 1))
    with pytest.raises(LawaError, match="was changed or removed"):
        in_memory.load(one)
    os.truncate(path / "model.safetensors", 600)
    with pytest.raises(LawaError, match="it ends before its tensors do"):
        in_memory.load(one)
    (path / "model.safetensors").unlink()
    with pytest.raises(LawaError, match="cannot be opened"):
        in_memory.load(one)
