"""SIGKILL at random moments: the run goes on to the bits of one never interrupted."""

import json
import multiprocessing
import random
import shutil

import pytest
import torch
from safetensors.torch import load_file

from lawa import records
from lawa.checkpoints.find import step_directories
from lawa.checkpoints.publish import is_published
from lawa.errors import LawaError
from lawa.pretrain import run as runs
from lawa.pretrain.config import Config
from lawa.pretrain.settings import build, merge
from twins import same_bits

KILLS = 30


def child(settings, directory):
    """Start the run, or go on with it; what it prints is nobody's business."""
    torch.set_num_threads(1)
    if not (directory / "config.yaml").exists():
        shutil.rmtree(directory, ignore_errors=True)
        runs.start(build(Config, settings), directory)
        return
    try:
        runs.resume(directory)
    except LawaError as error:
        if "stopped before its first checkpoint" not in str(error):
            raise
        shutil.rmtree(directory)
        runs.start(build(Config, settings), directory)


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_with_the_same_bits(settings, tmp_path):
    settings = merge(
        settings,
        {
            "training": {"updates": 48},
            "averaging": {"mode": "replace", "replace_with": "lawa", "after_replace": "clear", "moments": "average"},
            "checkpoints": {"every": 3, "keep": 3},
            "evaluation": {"every": 6},
        },
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    runs.start(build(Config, settings), whole)
    # Forked, so that a try costs milliseconds and not the import of torch.
    fork = multiprocessing.get_context("fork")
    draw = random.Random(0)
    kills = 0
    while kills < KILLS:
        process = fork.Process(target=child, args=(settings, killed))
        process.start()
        process.join(draw.uniform(0.02, 0.6))
        finished = not process.is_alive()
        process.kill()
        process.join()
        if finished:
            assert process.exitcode == 0
        else:
            kills += 1
        if is_published(killed / "final"):  # too early: begin again, there are kills left
            shutil.rmtree(killed)
            kills = min(kills, KILLS - 3)
    process = fork.Process(target=child, args=(settings, killed))
    process.start()
    process.join()
    assert process.exitcode == 0

    def weights(run):
        return load_file(run / "final" / "model.safetensors")

    assert all(same_bits(tensor, weights(killed)[name]) for name, tensor in weights(whole).items())
    for kind in ("train", "evaluation", "replacement"):
        mine, other = ([r for r in records.read(run / "metrics.jsonl") if r["kind"] == kind] for run in (killed, whole))
        assert mine == other
    for kept in ("checkpoints", "averages/lawa", "averages/ema"):
        assert list(step_directories(killed / kept)) == list(step_directories(whole / kept))
    assert list(killed.rglob("*.partial")) == []
    assert json.loads((killed / "run.json").read_text())["resumed"]  # or nothing was tested
