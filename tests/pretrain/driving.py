"""The real driver at the size of conftest's fixtures: train, be killed, compare."""

import io

import pytest
from rich.console import Console
from safetensors.torch import load_file

from lawa.pretrain import run as runs
from lawa.pretrain.config import Config
from lawa.pretrain.loop import Loop
from lawa.settings import build, merge
from twins import same_bits


def quiet():
    return Console(file=io.StringIO(), width=200)


def train(settings, directory, console=None, **sections):
    return runs.start(build(Config, merge(settings, sections)), directory, console=console or quiet())


def weights(directory):
    return load_file(directory / "model.safetensors")


def assert_same(left: dict, right: dict):
    assert left.keys() == right.keys()
    for name in left:
        assert same_bits(left[name], right[name]), name


class Killed(BaseException):
    pass


def killed_in(monkeypatch, settings, run, *, at, **sections):
    """Start a run and kill it in update `at`."""
    step = Loop.step

    def die(self, t):
        if t == at:
            raise Killed
        return step(self, t)

    with monkeypatch.context() as patched:
        patched.setattr(Loop, "step", die)
        with pytest.raises(Killed):
            train(settings, run, **sections)
