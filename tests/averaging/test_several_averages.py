"""Several averages over one stream of snapshots, EMAs and running means among them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import twins
from averaging import toys
from averaging.toys import evaluate
from lawa import EMA, RunningMean, Window
from lawa.averaging.averages import snapshots_needed
from lawa.averaging.coefficients import coefficients
from lawa.errors import LawaError

LAST = 14
Weights = dict[str, np.ndarray]


# ---- several averages


def test_each_average_keeps_its_own_cadence() -> None:
    model = toys.Tied()
    averager = evaluate(model, averages=toys.AVERAGES)
    copies: dict[int, Weights] = {}
    for t in range(1, LAST + 1):
        toys.wander(model, t)
        copies[t] = toys.weights(model)
        averager.update()
        for name, average in toys.AVERAGES.items():
            read = twins.captures(average.every, average.start, average.stop, t)
            rows = [copies[step] for step in (read[-average.size :] if isinstance(average, Window) else read)]
            assert averager.count(name) == len(rows), (name, t)
            if not rows:
                continue
            if isinstance(average, EMA):
                want = {
                    key: value if key == "scale" else twins.ema([row[key] for row in rows], 0.5)
                    for key, value in rows[-1].items()
                }
            else:
                c = coefficients("linear", len(rows)) if name == "long" else None
                want = toys.mean_of(rows, model, c)
            assert toys.same_weights(toys.seen_by(averager, name), want), (name, t)
    assert averager.steps("early") == [3, 4, 5]
    assert averager.steps("long") == [4, 8, 12]
    assert averager.steps("ema") == []


def test_one_snapshot_serves_every_window_that_is_due() -> None:
    model = toys.linear(torch.zeros(5000))
    averager = evaluate(model, averages={"a": Window(2, every=1), "b": Window(3, every=1), "c": Window(2, every=2)})
    one = 5000 * 4
    memory = toys.Memory()
    memory.ignore(model.weight)
    with memory:
        fresh = []
        for t in range(1, 9):
            toys.fill(model, float(t))
            before = memory.alive
            averager.update()
            fresh.append(round((memory.alive - before) / one, 1))
    # 1 is kept by a, b; 2 by all; 3; at 4, b lets 1 go and its memory takes 4: {2, 3, 4}; at 5, c still holds {2, 4}
    assert fresh == [1, 1, 1, 0, 1, 0, 0, 0]
    assert averager.cost().snapshots == 4
    assert averager.steps("a") == [7, 8]
    assert averager.steps("c") == [6, 8]


@pytest.mark.parametrize("placement", ["device", "host"])
def test_in_the_steady_state_a_capture_allocates_nothing(placement: str) -> None:
    model = toys.Tied()
    averager = evaluate(model, averages={"a": Window(2, every=1), "b": Window(3, every=2)}, placement=placement)
    for _ in range(8):
        averager.update()
    memory = toys.Memory()
    memory.ignore(*model.parameters())
    with memory:
        for _ in range(8):
            averager.update()
    assert memory.ops > 0
    assert memory.new == 0


def test_running_averages_keep_no_more_memory_than_their_state() -> None:
    model = toys.Tied()
    averager = evaluate(model, averages={"e": EMA(0.5), "m": RunningMean()})
    averager.update()
    averager.update()
    memory = toys.Memory()
    memory.ignore(*model.parameters())
    with memory:
        for _ in range(8):
            averager.update()
    assert memory.ops > 0
    assert memory.alive == 0


def test_a_capture_is_one_copy_a_group_however_many_tensors_there_are() -> None:
    """torch's AveragedModel takes 27 times a memory copy: several operators a tensor. Here the number is fixed."""
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(100)))
    averager = evaluate(model, every=1, window=2)
    for _ in range(4):
        averager.update()
    kinds: list[str] = []

    class Writes(toys.Memory):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func._schema.is_mutable:
                kinds.append(str(func))
            return func(*args, **(kwargs or {}))

    with Writes():
        averager.update()
    assert kinds == ["aten._foreach_copy_.default"]


@st.composite
def windows(draw: st.DrawFn) -> Window:
    size, every, start = draw(st.integers(1, 5)), draw(st.integers(1, 6)), draw(st.integers(1, 15))
    more = draw(st.none() | st.integers(0, 6))
    return Window(size, every=every, start=start, stop=None if more is None else start + (size + more) * every)


@settings(deadline=None)
@given(st.lists(windows(), min_size=1, max_size=3))
def test_how_many_snapshots_are_held_at_most(given_windows: list[Window]) -> None:
    settings = [(window.size, window.every, window.start, window.stop) for window in given_windows]
    # Starts, stops and the common period of the spacings (60 at most) have all passed by then.
    assert snapshots_needed(given_windows) == twins.most_snapshots(settings, 150)


def test_windows_without_a_short_period_get_the_sum_of_their_sizes() -> None:
    assert snapshots_needed([Window(3, every=9973), Window(4, every=9967)], captures=100) == 7
    assert snapshots_needed([]) == 0


# ---- EMA, running mean


@pytest.mark.parametrize("every", [1, 2, 5])
@pytest.mark.parametrize(("spacing", "k"), [(10, 2), (10, 5), (1000, 10), (1, 4)])
def test_the_matched_ema_has_the_mean_age_of_the_window(every: int, spacing: int, k: int) -> None:
    window = Window(k, every=spacing, start=7, stop=20 * spacing)
    ema = EMA.matched(window, every=every)
    window_age = twins.mean_age([1 / k] * k, [spacing * (k - 1 - i) for i in range(k)])
    n = 200_000
    powers = ema.beta ** np.arange(n)
    ema_age = float(np.sum((1 - ema.beta) * powers * every * np.arange(n)))
    assert ema_age == pytest.approx(window_age, rel=1e-6)
    assert (ema.every, ema.start, ema.stop) == (every, 7, 20 * spacing)


def test_the_matched_ema_has_the_designs_beta() -> None:
    """β = 1 − 2/(N(k − 1) + 2) per update; N = 1000, k = 10."""
    assert EMA.matched(Window(10, every=1000)).beta == pytest.approx(1 - 2 / 9002)
    with pytest.raises(LawaError, match="a window of 1 has mean age 0"):
        EMA.matched(Window(1, every=5))


@pytest.mark.parametrize("beta", [0, 1, -0.1, 1.5, "0.9", True, float("nan"), None])
def test_beta_lies_between_zero_and_one(beta: Any) -> None:
    with pytest.raises(LawaError, match=r"EMA beta=.* must lie strictly between 0 and 1"):
        EMA(beta)


def test_an_ema_starts_from_its_first_reading_at_start() -> None:
    model = toys.linear((1.0,))
    averager = evaluate(model, averages={"e": EMA(0.9, start=3)})
    for value in (100.0, 200.0, 5.0):
        toys.fill(model, value)
        averager.update()
    assert toys.seen_by(averager)["weight"].item() == 5.0


def test_an_ema_of_a_bf16_model_moves_at_0_9999() -> None:
    """In torch, timm and diffusers, where it is kept in bf16, it stays at its first value."""
    model = toys.linear((1.0,), dtype=torch.bfloat16)
    averager = evaluate(model, averages={"e": EMA(0.9999)})
    averager.update()
    toys.fill(model, 1.1)
    for _ in range(2000):
        averager.update()
    state = averager.state_dict()["running"]["e"]["weight"]
    assert state.dtype == torch.float32
    start, target = 1.0, model.weight.item()
    assert state.item() == pytest.approx(target + 0.9999**2000 * (start - target), abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("k", [1, 2, 3, 7])
def test_a_running_mean_has_the_bits_of_a_window_over_the_same_snapshots(dtype: torch.dtype, k: int) -> None:
    model = toys.Tied(dtype=dtype)
    averager = evaluate(model, averages={"w": Window(k, every=2), "m": RunningMean(every=2, stop=2 * k)})
    for t in range(1, 2 * k + 1):
        toys.wander(model, t)
        averager.update()
    assert averager.steps("w") == list(range(2, 2 * k + 1, 2))
    assert toys.same_weights(toys.seen_by(averager, "w"), toys.seen_by(averager, "m"))


def test_fp64_weights_have_fp64_states() -> None:
    model = toys.linear((1.0, 2.0), dtype=torch.float64)
    averager = evaluate(model, averages={"e": EMA(0.3), "m": RunningMean()})
    rows = []
    for t in range(1, 6):
        toys.wander(model, t)
        rows.append(twins.array(model.weight))
        averager.update()
    assert twins.same_bits(toys.seen_by(averager, "e")["weight"], twins.ema(rows, 0.3, np.float64))
    assert twins.same_bits(toys.seen_by(averager, "m")["weight"], twins.uniform(rows, np.float64))
