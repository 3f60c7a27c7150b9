"""Learning rates, by hand."""

import pytest

from lawa.pretrain.schedules import learning_rate

RULE = {"lr": 1.0, "min_lr": 0.1, "updates": 110, "warmup": 10}


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
    ],
)
def test_after_warm_up(schedule, expected):
    for t, rate in expected.items():
        assert learning_rate(t, schedule=schedule, decay=20, **RULE) == pytest.approx(rate), t


def test_without_warm_up_the_first_update_has_already_begun_to_fall():
    assert learning_rate(1, schedule="linear", lr=1.0, min_lr=0.0, updates=4, warmup=0) == 0.75
    assert learning_rate(4, schedule="linear", lr=1.0, min_lr=0.0, updates=4, warmup=0) == 0.0
    assert learning_rate(4, schedule="wsd", lr=1.0, min_lr=0.0, updates=4, warmup=0, decay=0) == 1.0
