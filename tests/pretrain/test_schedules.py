"""Learning rates, by hand; GPT-NeoX's against a literal twin and Pythia's numbers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lawa.pretrain.schedules import SCHEDULES, learning_rate

RULE = {"lr": 1.0, "min_lr": 0.1, "updates": 110, "warmup": 10}
PYTHIA = {"lr": 6e-4, "min_lr": 6e-5, "updates": 143_000, "warmup": 1430}  # 160M
NEOX = [schedule for schedule in SCHEDULES if schedule.startswith("neox-")]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "wsd"])
def test_warm_up_is_linear_and_reaches_the_peak(schedule):
    assert [learning_rate(t, schedule=schedule, decay=20, **RULE) for t in (1, 5, 10)] == pytest.approx([0.1, 0.5, 1.0])


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", {11: 1.0, 110: 1.0}),
        ("linear", {11: 0.991, 60: 0.55, 110: 0.1}),
        ("cosine", {35: 0.8681980515339464, 60: 0.55, 85: 0.23180194846605364, 110: 0.1}),
        ("wsd", {11: 1.0, 90: 1.0, 91: 0.955, 100: 0.55, 110: 0.1}),
        # s = t − 1; n = s − 10; for 1.0 over T = 110, for 2023 over T − W = 100
        ("neox-1.0-linear", {11: 1.0, 12: 109 / 110, 66: 55 / 110, 101: 20 / 110, 110: 20 / 110}),
        ("neox-2023-linear", {11: 1.0, 12: 0.99, 61: 0.5, 100: 0.11, 102: 0.1, 110: 0.1}),
        ("neox-1.0-cosine", {11: 1.0, 66: 0.5, 110: 0.1}),
        ("neox-2023-cosine", {11: 1.0, 61: 0.55, 86: 0.23180194846605364, 111: 0.1}),
    ],
)
def test_after_warm_up(schedule, expected):
    for t, rate in expected.items():
        assert learning_rate(t, schedule=schedule, decay=20, **RULE) == pytest.approx(rate), t


def test_without_warm_up_the_first_update_has_already_begun_to_fall():
    assert learning_rate(1, schedule="linear", lr=1.0, min_lr=0.0, updates=4, warmup=0) == 0.75
    assert learning_rate(4, schedule="linear", lr=1.0, min_lr=0.0, updates=4, warmup=0) == 0.0
    assert learning_rate(4, schedule="wsd", lr=1.0, min_lr=0.0, updates=4, warmup=0, decay=0) == 1.0


@pytest.mark.parametrize("schedule", NEOX)
def test_without_warm_up_neox_begins_at_the_peak(schedule):
    assert learning_rate(1, schedule=schedule, lr=1.0, min_lr=0.0, updates=4, warmup=0) == 1.0


@pytest.mark.parametrize(
    ("s", "form_1_0", "form_2023"),
    [
        (0, 0.0, 0.0),
        (1, 6e-4 / 1430, 6e-4 / 1430),
        (1430, 6e-4, 6e-4),
        (100_000, 0.220 * 6e-4, 0.290 * 6e-4),
        (115_138, 0.1000060 * 6e-4, 0.183308 * 6e-4),
        (115_139, 6e-5, 0.183302 * 6e-4),
        (142_999, 6e-5, 6e-5),
    ],
)
def test_pythia(s, form_1_0, form_2023):
    """Iteration s is update s + 1."""
    tolerance = {"rel": 2e-3 if s == 100_000 else 5e-6, "abs": 1e-12}  # three digits are known at 100,000
    assert learning_rate(s + 1, schedule="neox-1.0-cosine", **PYTHIA) == pytest.approx(form_1_0, **tolerance)
    assert learning_rate(s + 1, schedule="neox-2023-cosine", **PYTHIA) == pytest.approx(form_2023, **tolerance)


def test_pythia_reaches_its_floor_at_iteration_115139():
    rates = [learning_rate(s + 1, schedule="neox-1.0-cosine", **PYTHIA) for s in (115_138, 115_139, 142_999)]
    assert rates[0] > rates[1] == rates[2] == 6e-5
    last = learning_rate(143_000, schedule="neox-2023-cosine", **PYTHIA)
    assert 6e-5 < last < 6.0001e-5


def literal_neox(s, form, shape, lr, min_lr, total, warmup):
    """megatron/learning_rates.py get_lr() with num_iters = s: formulas of the cited commits, line by line."""
    now = min(s, total - warmup) if form == "1.0" else s
    if warmup > 0 and s <= warmup:
        return lr * now / warmup
    now = now - warmup
    span = total if form == "1.0" else total - warmup
    if shape == "linear":
        rate = lr * (span - now) / span
    elif form == "1.0":
        rate = lr / 2.0 * (math.cos(math.pi * now / span) + 1)
    else:
        rate = min_lr + ((lr - min_lr) / 2.0 * (math.cos(math.pi * now / span) + 1))
    return max(rate, min_lr)


@given(st.data())
def test_neox_is_its_literal_twin(data):
    total = data.draw(st.integers(1, 200))
    warmup = data.draw(st.integers(0, total - 1))
    t = data.draw(st.integers(1, total))
    schedule = data.draw(st.sampled_from(NEOX))
    _, form, shape = schedule.split("-")
    made = learning_rate(t, schedule=schedule, lr=3e-3, min_lr=3e-4, updates=total, warmup=warmup)
    assert made == pytest.approx(literal_neox(t - 1, form, shape, 3e-3, 3e-4, total, warmup), rel=1e-12)
