"""One contract over every way of training: same captures, same averages, same replacements, same bits on resume."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import twins
from contracts.adapters import HEAVY, LIGHT, RANKED
from contracts.contract import LAST, Adapter, Run, batch, expected, poke, same
from lawa import EMA, RunningMean, Window

EVALUATED: dict[str, dict[str, Any]] = {
    "every update": {"every": 1, "window": 3},
    "every third": {"every": 3, "window": 2},
    "from 4 to 9": {"every": 2, "window": 2, "start": 4, "stop": 9},
}
REPLACED: dict[str, dict[str, Any]] = {
    "slide": {"every": 1, "window": 3},
    "slide every second": {"every": 2, "window": 2},
    "clear": {"every": 2, "window": 2, "after_replace": "clear"},
    "now and then": {"every": 1, "window": 2, "replace_every": 3, "replace_until": 9},
    "part of the way": {"every": 2, "window": 3, "strength": 0.25},
    "at the very last update": {"every": LAST, "window": 1},
}
EVERY_MODE = [
    *(({"mode": "evaluate", **settings}) for settings in EVALUATED.values()),
    *(({"mode": "replace", **settings}) for settings in REPLACED.values()),
]


RESUMES = [(settings, save_at) for settings in EVERY_MODE for save_at in range(1, LAST)]
A_FEW = [(settings, (3, 6, 10)[i % 3]) for i, settings in enumerate(EVERY_MODE)]


def ways(adapters: Mapping[str, Adapter], *, slow: bool = False) -> list[Any]:
    return [pytest.param(one, id=name, marks=[pytest.mark.slow] if slow else []) for name, one in adapters.items()]


EVERY_WAY = ways(RANKED) if RANKED else [*ways(LIGHT), *ways(HEAVY, slow=True)]


@pytest.fixture(params=EVERY_WAY)
def train(request: pytest.FixtureRequest) -> Adapter:
    return request.param


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One for all ranks."""
    if not torch.distributed.is_initialized():
        return tmp_path
    told = [tmp_path]
    torch.distributed.broadcast_object_list(told)
    return told[0]


@pytest.mark.parametrize("settings", EVERY_MODE, ids=str)
def test_each_batch_sees_the_twins_weights_and_the_end_has_them(
    train: Adapter, settings: dict[str, Any], folder: Path
) -> None:
    want = expected(**settings)
    done = train(settings, folder)
    assert len(done.model.seen) == LAST
    for t, (seen, reference) in enumerate(zip(done.model.seen, want.seen, strict=True), start=1):
        assert same(seen, reference), f"batch {t}"
    assert same(done.read(done.model), want.final)
    assert not done.averager.replacement_pending
    assert done.averager.step == LAST
    assert done.averager.last_replacement == (want.replaced[-1] if want.replaced else None)


@pytest.mark.parametrize("settings", EVALUATED.values(), ids=EVALUATED)
def test_the_same_captures_and_the_same_average(train: Adapter, settings: dict[str, Any], folder: Path) -> None:
    want = expected(mode="evaluate", **settings)
    done = train({"mode": "evaluate", **settings}, folder)
    steps = sorted(want.captured)[-settings["window"] :]
    assert done.averager.steps() == steps
    snapshots = done.snapshots()
    assert sorted(snapshots) == steps
    for step, snapshot in snapshots.items():
        for name, values in snapshot.items():
            assert twins.same_bits(values, want.captured[step][name]), (step, name)
    mean = {name: twins.uniform([want.captured[step][name] for step in steps]) for name in want.final}
    assert same(done.average(), mean)
    assert same(done.read(done.model), want.final)


def test_every_kind_of_average_from_one_run(train: Adapter, folder: Path) -> None:
    averages = {"w": Window(2, every=3), "e": EMA(0.8), "m": RunningMean(every=2, start=5)}
    done = train({"mode": "evaluate", "averages": averages}, folder)
    run = expected(mode="evaluate", every=1, window=1).captured
    want = {
        name: {
            "w": twins.uniform([run[6][name], run[9][name]]),
            "e": twins.ema([run[t][name] for t in range(1, LAST + 1)], 0.8),
            "m": twins.uniform([run[6][name], run[8][name], run[10][name]]),
        }
        for name in run[1]
    }
    for average in averages:
        assert same(done.average(average), {name: kinds[average] for name, kinds in want.items()}), average


def resumes_to_the_same_bits(train: Adapter, settings: dict[str, Any], save_at: int, folder: Path) -> None:
    straight = train(settings, folder, save_at=save_at)
    resumed = train(settings, folder, resume=True)
    assert len(resumed.model.seen) == LAST - save_at
    for t, (seen, reference) in enumerate(
        zip(resumed.model.seen, straight.model.seen[save_at:], strict=True), start=save_at + 1
    ):
        assert same(seen, reference), f"batch {t}"
    assert same(resumed.read(resumed.model), straight.read(straight.model))
    assert resumed.averager.steps() == straight.averager.steps()
    if straight.averager.count():
        assert same(resumed.average(), straight.average())


@pytest.mark.parametrize(("settings", "save_at"), A_FEW, ids=str)
def test_resumed_it_sees_what_the_straight_run_saw(
    train: Adapter, settings: dict[str, Any], save_at: int, folder: Path
) -> None:
    resumes_to_the_same_bits(train, settings, save_at, folder)


@pytest.mark.skipif(bool(RANKED), reason="after a few updates is enough where processes talk")
@pytest.mark.parametrize("train", ways(LIGHT))
@pytest.mark.parametrize(("settings", "save_at"), RESUMES, ids=str)
def test_resumed_after_any_update(train: Adapter, settings: dict[str, Any], save_at: int, folder: Path) -> None:
    resumes_to_the_same_bits(train, settings, save_at, folder)


def test_looking_at_averages_during_training_changes_nothing(train: Adapter, folder: Path) -> None:
    looked: list[int] = []

    def during(t: int, run: Run) -> None:
        if run.averager.count():
            with run.averager.averaged() as model, torch.no_grad():
                model.eval()
                model(batch(99))
                model.train()
            looked.append(t)

    settings = {"mode": "replace", "every": 2, "window": 2}
    watched = train(settings, folder, during=during)
    assert looked == list(range(2, LAST + 1))
    again = train(settings, folder)
    assert same(watched.read(watched.model), again.read(again.model))


def test_an_evaluation_that_fails_leaves_the_models_own_weights(train: Adapter, folder: Path) -> None:
    met: list[Run] = []

    class Failed(Exception):
        pass

    def during(t: int, run: Run) -> None:
        if t == 7:
            met.append(run)
            with run.averager.averaged():
                raise Failed

    settings = {"mode": "evaluate", "every": 1, "window": 3}
    with pytest.raises(Failed):
        train(settings, folder, during=during)
    want = expected(**settings)
    (stopped,) = met
    assert same(stopped.read(stopped.model), want.captured[7])
    assert stopped.averager.steps() == [5, 6, 7]


def test_an_update_inside_averaged_is_refused(train: Adapter, folder: Path) -> None:
    def during(t: int, run: Run) -> None:
        with run.averager.averaged(), pytest.raises(ValueError, match=r"an update inside averaged\('lawa'\)"):
            run.averager.capture(t + 1)

    done = train({"mode": "evaluate", "every": 1, "window": 2}, folder, during=during)
    assert done.averager.steps() == [LAST - 1, LAST]


def test_a_blow_up_is_not_spread(train: Adapter, folder: Path) -> None:
    """One snapshot with an inf: replacements wait until it has left the window, and training has its own weights."""

    def during(t: int, run: Run) -> None:
        if t == 4:
            poke(run, "inner.bias", float("inf"))  # the next update captures it
        if t == 5:
            poke(run, "inner.bias", 0.5)

    done = train({"mode": "replace", "every": 1, "window": 2, "start": 5}, folder, during=during)
    assert np.isinf(done.model.seen[4]["inner.bias"][0])
    assert all(np.isfinite(seen["inner.bias"]).all() for seen in done.model.seen[6:])
    assert done.averager.last_replacement == LAST
