"""A run that begins in the middle of another: the same bits with its optimizer state, windows that are full at once."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lawa import records
from lawa.errors import LawaError, UsageError
from lawa.pretrain import run as runs
from lawa.pretrain.config import Config
from lawa.pretrain.sections.training import TrainingConfig
from lawa.settings import build, merge
from pretrain.driving import assert_same, killed_in, quiet, train, weights
from twins import array, uniform

WINDOW = {"averaging": {"mode": "evaluate", "averages": {"lawa": {"window": 3, "every": 2}, "ema": None}}}


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory):
    """All 12 updates, with a checkpoint every 2."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    train(settings, run, **WINDOW, checkpoints={"every": 2, "resumable": 12})
    return run


def from_step(run: Path, step: int, *, prefill: tuple[int, ...] = (), **training) -> dict:
    at = run / "checkpoints" / f"step{step:08d}"
    return {
        "model": {"weights": str(at), "optimizer": str(at / "training" / "optimizer.safetensors")},
        "training": {"start": step, **training},
        "averaging": {"prefill": {str(one): str(run / "checkpoints" / f"step{one:08d}") for one in prefill}},
    }


def midway(settings, run: Path, *overlays) -> dict[str, float]:
    values = {**settings, "model": {}}
    for overlay in overlays:
        values = merge(values, overlay)
    return train(values, run)


def losses(run: Path, kind: str = "evaluation") -> dict[int, dict]:
    return {one["update"]: one for one in records.read(run / "metrics.jsonl") if one["kind"] == kind}


@pytest.mark.parametrize("step", [2, 6])
def test_with_its_optimizer_state_it_has_the_bits_of_the_run_it_goes_on_with(settings, whole, tmp_path, step):
    midway(settings, tmp_path / "run", WINDOW, from_step(whole, step, prefill=tuple(range(2, step, 2))))
    assert_same(weights(tmp_path / "run" / "final"), weights(whole / "final"))
    for update in range(step + 2, 13, 2):
        name = f"checkpoints/step{update:08d}"
        assert_same(weights(tmp_path / "run" / name), weights(whole / name))
    for update in (8, 12):
        assert losses(tmp_path / "run")[update]["losses"] == losses(whole)[update]["losses"], "averages too"
    ours, theirs = losses(tmp_path / "run", "train"), losses(whole, "train")
    assert [(t, one["lr"], one["grad_norm"]) for t, one in ours.items()] == [
        (t, one["lr"], one["grad_norm"]) for t, one in theirs.items() if t > step
    ]


def test_without_it_the_moments_are_fresh_and_the_weights_others(settings, whole, tmp_path):
    overlay = from_step(whole, 6)
    del overlay["model"]["optimizer"]
    midway(settings, tmp_path / "run", WINDOW, overlay)
    fresh, kept = weights(tmp_path / "run" / "final"), weights(whole / "final")
    assert not torch.equal(fresh["gpt_neox.embed_in.weight"], kept["gpt_neox.embed_in.weight"])


def test_full_windows_are_evaluated_and_replace_at_once(settings, whole, tmp_path):
    replace = {"averaging": {"mode": "replace", "replace_with": "lawa"}, "evaluation": {"every": 12}}
    midway(settings, tmp_path / "run", WINDOW, from_step(whole, 6, prefill=(2, 4)), replace)
    checkpoints = [weights(whole / "checkpoints" / f"step{step:08d}") for step in (2, 4, 6)]
    first = losses(tmp_path / "run")[6]
    assert first["snapshots"] == {"lawa": 3}
    at = whole / "averages" / "lawa" / "step00000006"
    expected = {name: uniform([array(one[name]) for one in checkpoints]) for name in checkpoints[0]}
    assert_same(weights(at), expected)
    replacements = [
        one["update"] for one in records.read(tmp_path / "run" / "metrics.jsonl") if one["kind"] == "replacement"
    ]
    assert replacements == [6, 8, 10, 12]


def test_ema_and_running_mean_begin_with_the_start(settings, whole, tmp_path):
    averages = {"averaging": {"averages": {"lawa": {"window": 3, "every": 2}, "ema": {"ema": 0.9, "every": 1}}}}
    midway(settings, tmp_path / "run", averages, from_step(whole, 6, prefill=(2, 4)))
    assert losses(tmp_path / "run")[12]["snapshots"] == {"lawa": 3, "ema": 7}


def test_it_can_be_killed_and_gone_on_with(settings, whole, tmp_path, monkeypatch):
    values = merge(merge({**settings, "model": {}}, WINDOW), from_step(whole, 6, prefill=(2, 4)))
    killed_in(monkeypatch, values, tmp_path / "run", at=9)
    runs.resume(tmp_path / "run", console=quiet())
    assert_same(weights(tmp_path / "run" / "final"), weights(whole / "final"))


def test_the_schedule_is_the_whole_runs_scaled_and_warmed_up_again():
    base = {"updates": 20, "batch": 1, "lr": 1.0, "min_lr": 0.1, "schedule": "cosine", "warmup": 2}
    whole = build(TrainingConfig, {**base, "updates": 100})
    part = build(TrainingConfig, {**base, "start": 10, "horizon": 100, "lr_scale": 4.0, "rewarmup": 5})
    assert [part.rate(t) / whole.rate(t) for t in (11, 13, 15, 20)] == pytest.approx([0.8, 2.4, 4.0, 4.0])


@pytest.mark.parametrize(
    ("overlay", "sentence"),
    [
        ({"training": {"start": 12}}, r"training.start=12 leaves nothing of training.updates=12"),
        ({"training": {"horizon": 11}}, r"training.horizon=11 ends before training.updates=12"),
        ({"averaging": {"prefill": {"7": "x"}}}, r"update 7 is not before training.start=6"),
        ({"averaging": {"prefill": {"x": "y"}}}, r"must map updates to folders"),
        ({"averaging": {"averages": {"lawa": {"window": 5, "every": 2}}}}, r"after training.updates=12"),
        ({"model": {"weights": None, "optimizer": None, "architecture": "gpt2"}}, r"training.start needs the weights"),
        ({"averaging": {"prefill": {"2": "x"}, "placement": "disk"}}, r"needs snapshots in memory"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(settings, whole, overlay, sentence):
    values = merge(merge({**settings, "model": {}}, WINDOW), merge(from_step(whole, 6), overlay))
    with pytest.raises(UsageError, match=sentence):
        build(Config, values)


def test_a_state_of_other_weights_is_refused_by_name(settings, whole, tmp_path):
    overlay = from_step(whole, 6)
    state = load_file(overlay["model"]["optimizer"])
    lacking = {name: tensor for name, tensor in state.items() if name != "exp_avg.gpt_neox.embed_in.weight"}
    save_file(lacking, tmp_path / "lacking.safetensors")
    overlay["model"]["optimizer"] = str(tmp_path / "lacking.safetensors")
    with pytest.raises(LawaError, match=r"has nothing of 'exp_avg.gpt_neox.embed_in.weight'"):
        midway(settings, tmp_path / "run", WINDOW, overlay)
    assert not (tmp_path / "run").exists()


def test_the_record_says_where_it_began(settings, whole, tmp_path):
    midway(settings, tmp_path / "run", WINDOW, from_step(whole, 6, prefill=(2, 4)))
    described = json.loads((tmp_path / "run" / "run.json").read_text())
    assert described["config"]["training"]["start"] == 6
    assert set(described["initial"]["files"]) >= {"config.json", "model.safetensors"}
