"""One contract over every way of training: same captures, same averages, same replacements, same bits on resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import twins
from contracts.adapters import ADAPTERS
from contracts.contract import LAST, Adapter, Finished, Weights, batch, expected, same, weights
from lawa import EMA, RunningMean, WeightAverager, Window

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


@pytest.fixture(params=ADAPTERS.values(), ids=ADAPTERS)
def train(request: pytest.FixtureRequest) -> Adapter:
    return request.param


def average_of(averager: WeightAverager, name: str | None = None) -> Weights:
    with averager.averaged(name) as model:
        return weights(model)


@pytest.mark.parametrize("settings", EVERY_MODE, ids=str)
def test_each_batch_sees_the_twins_weights_and_the_end_has_them(
    train: Adapter, settings: dict[str, Any], tmp_path: Path
) -> None:
    want = expected(**settings)
    done = train(settings, tmp_path)
    assert len(done.model.seen) == LAST
    for t, (seen, reference) in enumerate(zip(done.model.seen, want.seen, strict=True), start=1):
        assert same(seen, reference), f"batch {t}"
    assert same(weights(done.model), want.final)
    assert not done.averager.replacement_pending
    assert done.averager.step == LAST
    assert done.averager.last_replacement == (want.replaced[-1] if want.replaced else None)


@pytest.mark.parametrize("settings", EVALUATED.values(), ids=EVALUATED)
def test_the_same_captures_and_the_same_average(train: Adapter, settings: dict[str, Any], tmp_path: Path) -> None:
    want = expected(mode="evaluate", **settings)
    done = train({"mode": "evaluate", **settings}, tmp_path)
    steps = sorted(want.captured)[-settings["window"] :]
    assert done.averager.steps() == steps
    for step, snapshot in done.averager.state_dict()["snapshots"].items():
        for name, tensor in snapshot.items():
            assert twins.same_bits(tensor, want.captured[int(step)][name]), (step, name)
    mean = {name: twins.uniform([want.captured[step][name] for step in steps]) for name in want.final}
    assert same(average_of(done.averager), mean)
    assert same(weights(done.model), want.final)


def test_every_kind_of_average_from_one_run(train: Adapter, tmp_path: Path) -> None:
    averages = {"w": Window(2, every=3), "e": EMA(0.8), "m": RunningMean(every=2, start=5)}
    done = train({"mode": "evaluate", "averages": averages}, tmp_path)
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
        assert same(average_of(done.averager, average), {name: kinds[average] for name, kinds in want.items()}), average


@pytest.mark.parametrize("save_at", range(1, LAST))
@pytest.mark.parametrize("settings", EVERY_MODE, ids=str)
def test_resumed_after_any_update_it_sees_what_the_straight_run_saw(
    train: Adapter, settings: dict[str, Any], save_at: int, tmp_path: Path
) -> None:
    straight = train(settings, tmp_path, save_at=save_at)
    resumed = train(settings, tmp_path, resume=True)
    assert len(resumed.model.seen) == LAST - save_at
    for t, (seen, reference) in enumerate(
        zip(resumed.model.seen, straight.model.seen[save_at:], strict=True), start=save_at + 1
    ):
        assert same(seen, reference), f"batch {t}"
    assert same(weights(resumed.model), weights(straight.model))
    assert resumed.averager.steps() == straight.averager.steps()
    if straight.averager.count():
        assert same(average_of(resumed.averager), average_of(straight.averager))


def test_looking_at_averages_during_training_changes_nothing(train: Adapter, tmp_path: Path) -> None:
    looked: list[int] = []

    def during(t: int, averager: WeightAverager) -> None:
        if averager.count():
            with averager.averaged() as model, torch.no_grad():
                model.eval()
                model(batch(99))
                model.train()
            looked.append(t)

    settings = {"mode": "replace", "every": 2, "window": 2}
    watched = train(settings, tmp_path, during=during)
    assert looked == list(range(2, LAST + 1))
    assert same(weights(watched.model), weights(train(settings, tmp_path).model))


def test_an_evaluation_that_fails_leaves_the_models_own_weights(train: Adapter, tmp_path: Path) -> None:
    met: list[Finished] = []

    class Failed(Exception):
        pass

    def during(t: int, averager: WeightAverager) -> None:
        if t == 7:
            met.append(Finished(averager.model, averager))  # type: ignore[arg-type]
            with averager.averaged():
                raise Failed

    settings = {"mode": "evaluate", "every": 1, "window": 3}
    with pytest.raises(Failed):
        train(settings, tmp_path, during=during)
    want = expected(**settings)
    (stopped,) = met
    assert same(weights(stopped.model), want.captured[7])
    assert stopped.averager.steps() == [5, 6, 7]


def test_an_update_inside_averaged_is_refused(train: Adapter, tmp_path: Path) -> None:
    def during(t: int, averager: WeightAverager) -> None:
        with averager.averaged(), pytest.raises(ValueError, match=r"an update inside averaged\('lawa'\)"):
            averager.capture(t + 1)

    done = train({"mode": "evaluate", "every": 1, "window": 2}, tmp_path, during=during)
    assert done.averager.steps() == [LAST - 1, LAST]


def test_a_blow_up_is_not_spread(train: Adapter, tmp_path: Path) -> None:
    """One snapshot with an inf: replacements wait until it has left the window, and training has its own weights."""

    def during(t: int, averager: WeightAverager) -> None:
        bias = averager.model.inner.bias.data  # type: ignore[union-attr]
        if t == 4:
            bias[0] = float("inf")  # the next update captures it
        if t == 5:
            bias[0] = 0.5

    done = train({"mode": "replace", "every": 1, "window": 2, "start": 5}, tmp_path, during=during)
    assert np.isinf(done.model.seen[4]["inner.bias"][0])
    assert all(np.isfinite(seen["inner.bias"]).all() for seen in done.model.seen[6:])
    assert done.averager.last_replacement == LAST
