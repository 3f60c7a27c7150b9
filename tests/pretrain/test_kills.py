"""SIGKILL at random moments, and inside all that must not be half done: the run ends with an undisturbed one's bits."""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import os
import random
import shutil
import time
from collections import Counter
from unittest import mock

import pytest
import torch

from lawa import records
from lawa.averaging.averager import WeightAverager
from lawa.checkpoints import publish, retention
from lawa.checkpoints.publish import is_published
from lawa.errors import LawaError
from lawa.pretrain import run as runs
from lawa.pretrain.checkpoint import checkpoints, load
from lawa.pretrain.config import Config
from lawa.settings import build, merge

KILLS = 50  # of each placement
MOST_TRIES = 300
WITHIN = {"a replacement": 6, "a write": 6, "a publication": 4, "retention": 6, "a removal": 4}
ENTERED = dict(zip("rwpta", WITHIN, strict=True))  # what the child says when it enters; on leaving, the capital
PLACEMENTS = {
    "device": {
        "averaging": {"moments": "average"},
        "checkpoints": {"keep": 2, "resumable": 1},
    },
    "disk": {
        "averaging": {"placement": "disk", "averages": {"lawa": {"every": 3}}},
        "checkpoints": {"keep": 1, "resumable": 2},
    },
}


def child(settings, directory, say):
    """Start the run, or go on with it, and say what is entered and left; what it prints is nobody's business."""
    torch.set_num_threads(1)

    def telling(letter, function):
        def told(*arguments, **more):
            os.write(say, letter.encode())
            result = function(*arguments, **more)
            os.write(say, letter.upper().encode())
            return result

        return told

    for letter, owner, name in (
        ("r", WeightAverager, "replace_if_due"),
        ("w", checkpoints.Checkpoints, "_write_model"),
        ("w", checkpoints.Checkpoints, "_write_training"),
        ("p", publish, "complete"),
        ("t", checkpoints, "retain"),
        ("t", load, "retain"),
        ("a", retention, "remove"),
    ):
        mock.patch.object(owner, name, telling(letter, getattr(owner, name))).start()
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


class Victim:
    """One process of the run. Forked, so that a try costs milliseconds and not the import of torch."""

    def __init__(self, settings, directory):
        self.said = b""
        self._hear, say = os.pipe()
        self.process = multiprocessing.get_context("fork").Process(target=child, args=(settings, directory, say))
        self.process.start()
        os.close(say)

    def wait_for(self, letter, times):
        """Until it has entered that so many times, or has ended."""
        while self.said.count(letter.encode()) < times and (heard := os.read(self._hear, 1)):
            self.said += heard

    def kill(self):
        """SIGKILL; what it was inside of, or None where it had ended by itself."""
        self.process.kill()
        code = self.end()
        if code == 0:
            return None
        assert code == -9
        while heard := os.read(self._hear, 4096):
            self.said += heard
        counts = Counter(self.said.decode())
        return [what for letter, what in ENTERED.items() if counts[letter] > counts[letter.upper()]]

    def end(self):
        self.process.join()
        return self.process.exitcode

    def __enter__(self):
        return self

    def __exit__(self, *failed):
        self.process.kill()
        self.process.join()
        os.close(self._hear)


def left_behind(run):
    """Every file by name, tensors with their digest; and every record, but for how long things took."""
    files = {
        path.relative_to(run).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.suffix == ".safetensors"
        else None
        for path in run.rglob("*")
    }
    told = [{**record, "seconds": None} for record in records.read(run / "metrics.jsonl")]
    return files, told


@pytest.mark.slow
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_run_killed_anywhere_ends_with_the_same_bits(settings, tmp_path, placement):
    common = {
        "training": {"updates": 48},
        "averaging": {"mode": "replace", "replace_with": "lawa", "after_replace": "clear"},
        "checkpoints": {"every": 3},
        "evaluation": {"every": 6},
    }
    settings = merge(merge(settings, common), PLACEMENTS[placement])
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    runs.start(build(Config, settings), whole)
    expected = left_behind(whole)
    draw = random.Random(placement)
    kills, within = 0, Counter()
    for attempt in itertools.count():
        assert attempt < MOST_TRIES, (kills, within)
        missing = [(letter, what) for letter, what in ENTERED.items() if within[what] < WITHIN[what]]
        if kills >= KILLS and not missing:
            break
        with Victim(settings, killed) as victim:
            if attempt % 2 and missing:
                victim.wait_for(draw.choice(missing)[0], draw.randint(1, 3))
                time.sleep(draw.choice((0.0, draw.uniform(0, 0.003))))
            else:
                victim.process.join(draw.uniform(0.02, 0.8))
            hit = victim.kill()
        if hit is not None:
            kills += 1
            within.update(hit)
        if is_published(killed / "final"):  # too early: there are kills left for another one
            assert left_behind(killed) == expected
            shutil.rmtree(killed)
    if not is_published(killed / "final"):
        with Victim(settings, killed) as victim:
            assert victim.end() == 0
        assert left_behind(killed) == expected


def test_that_comparison_can_fail(settings, tmp_path):
    for name, seed in (("one", 0), ("other", 1)):
        runs.start(build(Config, merge(settings, {"seed": seed, "training": {"updates": 6}})), tmp_path / name)
    one, other = (left_behind(tmp_path / name) for name in ("one", "other"))
    assert one[0].keys() == other[0].keys()
    assert one[0] != other[0]
    assert one[1] != other[1]
    (tmp_path / "one" / ".left.partial").mkdir()
    assert left_behind(tmp_path / "one")[0].keys() - one[0].keys() == {".left.partial"}
