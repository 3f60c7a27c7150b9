from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from averaging import toys
from checkpoints import exported
from launching import launch
from lawa import EMA, LawaError, NonFiniteAverage, WeightAverager
from lawa.checkpoints import sharded_files
from lawa.checkpoints.publish import verify
from lawa.checkpoints.save_average import save_average

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def no_bars():
    from transformers.utils import logging

    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


@pytest.mark.parametrize("kind", exported.CONFIGS)
@pytest.mark.parametrize("size", [10**9, 2000])
def test_from_pretrained_has_the_bits_of_the_average(kind: str, size: int, tmp_path: Path) -> None:
    averager = exported.trained(exported.made(kind))
    before = toys.weights(averager.model)
    save_average(averager, tmp_path / "it", name="lawa", max_shard_size=size)
    assert exported.same(exported.loaded(tmp_path / "it"), exported.averaged(averager, "lawa"))
    assert (tmp_path / "it/model.safetensors").exists() == (size == 10**9)
    assert toys.same_weights(toys.weights(averager.model), before)
    verify(tmp_path / "it")


def test_provenance_says_what_it_is(tmp_path: Path) -> None:
    averager = exported.trained(exported.made("gpt2"))
    save_average(averager, tmp_path / "window", name="lawa")
    save_average(averager, tmp_path / "ema", name="ema", dtype=torch.float64)
    window, ema = (json.loads((tmp_path / name / "provenance.json").read_text()) for name in ("window", "ema"))
    assert window["average"] == "lawa"
    assert window["kind"] == "window 2, every 1, uniform"
    assert (window["update"], window["snapshots"]) == (3, [2, 3])
    assert (window["accumulate"], window["dtype"], window["rounded"]) == ("float32", ["float32"], False)
    assert "latest-weight-averaging" in window["versions"]
    assert (ema["snapshots"], ema["dtype"], ema["rounded"]) == (3, ["float64"], False)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16])
def test_rounded_tied_once_and_so_marked(dtype: str | torch.dtype, tmp_path: Path) -> None:
    averager = exported.trained(exported.made("gpt2"))
    save_average(averager, tmp_path / "it", name="lawa", dtype=dtype)
    to = torch.bfloat16 if dtype == "bfloat16" else torch.float16
    found = load_file(tmp_path / "it/model.safetensors")
    assert "lm_head.weight" not in found
    want = {name: tensor.to(to) for name, tensor in exported.averaged(averager, "lawa").items()}
    assert exported.same(exported.loaded(tmp_path / "it"), want)
    assert json.loads((tmp_path / "it/provenance.json").read_text())["rounded"] is True


def test_any_module_gets_safetensors(tmp_path: Path) -> None:
    """Tied once, a scalar, an integer buffer, and one that is compiled around."""
    for model in (exported.Odd(), torch.compile(exported.Odd(), backend="eager")):
        averager = exported.trained(model)
        want = {name.removeprefix("_orig_mod."): t for name, t in exported.averaged(averager, "ema").items()}
        place = save_average(averager, tmp_path / type(model).__name__, name="ema")
        assert torch.equal(want.pop("head.weight"), want["embed.weight"])
        assert exported.same(load_file(place / "model.safetensors"), want)
        assert sorted(file.name for file in place.iterdir()) == [
            "manifest.json",
            "model.safetensors",
            "provenance.json",
        ]


def test_files_are_split_by_size(tmp_path: Path) -> None:
    tensors = {name: torch.full((count,), float(count)) for name, count in (("a", 2), ("b", 9), ("c", 1), ("d", 1))}
    sharded_files.write(tmp_path, tensors, 8)
    index = json.loads((tmp_path / sharded_files.INDEX).read_text())
    assert index["metadata"]["total_size"] == 4 * 13
    assert index["weight_map"] == {
        "a": "model-00001-of-00003.safetensors",
        "b": "model-00002-of-00003.safetensors",
        "c": "model-00003-of-00003.safetensors",
        "d": "model-00003-of-00003.safetensors",
    }
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[name], tensors[name])


def test_refused_nothing_is_left(tmp_path: Path) -> None:
    averager = WeightAverager(nn.Linear(2, 2), mode="evaluate", averages={"ema": EMA(0.5)})
    with pytest.raises(LawaError, match="holds nothing"):
        save_average(averager, tmp_path / "it")
    averager.update()
    with pytest.raises(LawaError, match="dtype='int8' must name a floating-point type"):
        save_average(averager, tmp_path / "it", dtype="int8")
    with pytest.raises(LawaError, match="dtype='half a byte'"):
        save_average(averager, tmp_path / "it", dtype="half a byte")
    toys.fill(averager.model, float("nan"))
    averager.update()
    with pytest.raises(NonFiniteAverage, match=r"'ema' is not finite; .*it was not written"):
        save_average(averager, tmp_path / "it")
    assert not list(tmp_path.iterdir())
    toys.fill(averager.model, 1.0)
    averager = exported.trained(averager.model)
    averager.model.weight.ds_id = 1
    with pytest.raises(LawaError, match="ZeRO-3 has partitioned the model"):
        save_average(averager, tmp_path / "it", name="ema")
    del averager.model.weight.ds_id
    (tmp_path / "it").mkdir()
    with pytest.raises(LawaError, match="exists already"):
        save_average(averager, tmp_path / "it", name="ema")


def test_what_fails_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    averager = exported.trained(exported.Odd())
    before = toys.weights(averager.model)

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(sharded_files, "save_file", full)
    with pytest.raises(OSError, match="no space left"):
        save_average(averager, tmp_path / "it", name="ema")
    assert not list(tmp_path.iterdir())
    assert toys.same_weights(toys.weights(averager.model), before)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [*(pytest.param(one, marks=pytest.mark.exhaustive) for one in (1, 3)), 2])
def test_on_ranks(ranks: int, tmp_path: Path) -> None:
    said = launch(HERE / "exported.py", ranks, str(tmp_path), *exported.CHECKS, timeout=180)
    for rank in range(ranks):
        for check in exported.CHECKS:
            assert f"rank {rank}: {check}\n" in said, "every check ran on every rank"


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [pytest.param(2, marks=pytest.mark.exhaustive), 3])
def test_no_rank_has_the_whole_model(ranks: int, tmp_path: Path) -> None:
    """What is freed goes back at once, or it would serve again, and not be seen."""
    launch(HERE / "exported.py", ranks, str(tmp_path), *exported.ALONE, MALLOC_MMAP_THRESHOLD_="65536")
