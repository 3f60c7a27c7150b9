"""Averages that are not finite: skipped, said, and agreed."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch

from averaging import toys
from averaging.toys import evaluate, replace
from lawa import EMA, RunningMean, WeightAverager, Window
from lawa.errors import NonFiniteAverage

LAST = 14
Weights = dict[str, np.ndarray]


# ---- non-finite


def poisoned(values: list[float], **settings: Any) -> tuple[WeightAverager, list[float], list[bool]]:
    """Weights take `values` one after the other, unless a replacement changes them."""
    model = toys.linear((0.0, 0.0))
    averager = replace(model, every=1, **settings)
    seen, replaced = [], []
    for value in values:
        with torch.no_grad():
            model.weight[0, 1] = value
        replaced.append(averager.update())
        seen.append(model.weight[0, 1].item())
    return averager, seen, replaced


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_non_finite_average_is_skipped_and_logged_and_training_goes_on(
    bad: float, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="lawa"):
        _, seen, replaced = poisoned([1.0, 3.0, bad, 5.0, 7.0], window=2)
    assert replaced == [False, True, False, False, True]
    assert seen[:2] == [1.0, 2.0]
    assert seen[3:] == [5.0, 6.0]
    assert [record.getMessage() for record in caplog.records] == [
        f"update {t}: the average 'lawa' of 2 snapshots is not finite (first in 'weight'); replacement skipped"
        for t in (3, 4)
    ]


def test_strict_stops_with_the_weights_as_they_are() -> None:
    model = toys.linear((1.0, 2.0))
    averager = replace(model, every=1, window=2, strict=True)
    averager.update()
    with torch.no_grad():
        model.weight[0, 0] = float("inf")
    with pytest.raises(NonFiniteAverage, match=r"update 2: .* not finite .first in 'weight'.; the weights were left"):
        averager.update()
    assert model.weight.tolist() == [[float("inf"), 2.0]]
    assert not averager.replacement_pending


def test_a_skipped_replacement_does_not_clear_and_waits_its_turn() -> None:
    averager, seen, replaced = poisoned(
        [1.0, float("nan"), 3.0, 5.0, 7.0, 9.0], window=2, after_replace="clear", replace_every=2
    )
    # due at 2 (skipped), then at 4: {3, 4} → 4.0; cleared; full again at 6: {5, 6} → 8.0
    assert replaced == [False, False, False, True, False, True]
    assert (seen[3], seen[5]) == (4.0, 8.0)
    assert averager.steps() == []


def test_a_skipped_replacement_counts_as_the_last_one() -> None:
    averager, _, replaced = poisoned([float("nan"), 1.0, 2.0, 3.0, 4.0], window=1, replace_every=3)
    assert replaced == [False, False, False, True, False]
    assert averager.last_replacement == 4


def test_overflow_in_the_captured_dtype_is_seen_too() -> None:
    """fp16 weights that are all finite, with coefficients that leave its range."""
    model = toys.linear((60000.0,), dtype=torch.float16)
    averager = replace(model, every=1, window=2, coefficients=[-0.5, 1.5])
    averager.update()
    toys.fill(model, -60000.0)
    assert not averager.update()
    assert model.weight.item() == -59999 - 1


def test_is_finite_of_each_kind() -> None:
    model = toys.linear((1.0, 2.0))
    averager = evaluate(model, averages={"w": Window(2, every=1), "e": EMA(0.5), "m": RunningMean()})
    averager.update()
    assert all(averager.is_finite(name) for name in averager.averages)
    with torch.no_grad():
        model.weight[0, 1] = float("inf")
    averager.update()
    assert not any(averager.is_finite(name) for name in averager.averages)
    for _ in range(2):
        toys.fill(model, 1.0)
        averager.update()
    assert averager.is_finite("w"), "it has left the window"


def test_evaluating_a_non_finite_average_is_allowed() -> None:
    model = toys.linear((float("nan"),))
    averager = evaluate(model, every=1, window=1)
    averager.update()
    assert np.isnan(toys.seen_by(averager)["weight"]).all()


def test_an_average_in_place_is_not_made_again_to_be_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    model = toys.linear((1.0, 2.0))
    averager = evaluate(model, every=1, window=2)
    for value in (3.0, float("nan")):
        averager.update()
        with averager.averaged():
            monkeypatch.setattr(averager._collection, "average", None)
            assert averager.is_finite() is (value == 3.0)
            monkeypatch.undo()
        with torch.no_grad():
            model.weight[0, 1] = float("nan")
