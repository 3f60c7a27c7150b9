"""Settings that contradict each other, and steps in any order."""

from __future__ import annotations

import warnings
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from averaging import toys
from averaging.toys import evaluate, replace
from lawa import EMA, RunningMean, WeightAverager, Window
from lawa.errors import LawaError

LAST = 14
Weights = dict[str, np.ndarray]


# ---- settings


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"mode": "average"}, "mode='average' must be 'evaluate' or 'replace'"),
        ({"mode": "evaluate", "every": 0}, "every=0 must be at least 1"),
        ({"mode": "evaluate", "window": 0}, "window=0 must be at least 1"),
        ({"mode": "evaluate", "window": 2.0}, "window=2.0 must be a whole number"),
        ({"mode": "evaluate", "window": 3, "min_window": 4}, "min_window=4 is more than the window of 3"),
        ({"mode": "evaluate", "window": 4, "every": 10, "stop": 30}, "never fills: captures stop at 30, after 3 of 4"),
        ({"mode": "evaluate", "accumulate": torch.bfloat16}, "accumulate=torch.bfloat16 must be"),
        ({"mode": "evaluate", "averages": {}}, "averages is empty"),
        ({"mode": "evaluate", "averages": {"a": 10}}, "average 'a' is 10; it must be a Window"),
        ({"mode": "evaluate", "averages": {"plain": EMA(0.9)}}, "'plain' cannot name an average"),
        ({"mode": "evaluate", "averages": {"a/b": EMA(0.9)}}, "'a/b' cannot name an average"),
        ({"mode": "evaluate", "averages": {"": EMA(0.9)}}, "'' cannot name an average"),
        ({"mode": "evaluate", "averages": {"..": EMA(0.9)}}, "'..' cannot name an average"),
        ({"mode": "evaluate", "averages": {"a": EMA(0.9)}, "every": 5}, "every belong to the short form"),
        ({"mode": "replace", "averages": {"a": EMA(0.9), "b": EMA(0.8)}}, "replace_with must name .* one of a, b"),
        ({"mode": "replace", "replace_with": "x"}, "average 'x' is unknown; name one of lawa"),
        (
            {"mode": "replace", "averages": {"a": EMA(0.9)}},
            "replacing with 'a', a running average, needs replace_every",
        ),
        ({"mode": "replace", "after_replace": "empty"}, "after_replace='empty' must be 'slide' or 'clear'"),
        ({"mode": "replace", "after_replace": ""}, "after_replace='' must be 'slide' or 'clear'"),
        ({"mode": "replace", "strength": 0}, r"strength=0 must lie in \(0, 1\]"),
        ({"mode": "replace", "strength": 1.1}, "strength=1.1 must lie in"),
        ({"mode": "replace", "strength": "1"}, "strength='1' must lie in"),
        ({"mode": "replace", "strength": True}, "strength=True must lie in"),
        ({"mode": "replace", "strength": float("nan")}, "strength=nan must lie in"),
        ({"mode": "replace", "moments": "zero"}, "moments='zero' must be one of keep, reset, average"),
        ({"mode": "replace", "moments": ""}, "moments='' must be one of keep, reset, average"),
        ({"mode": "replace", "moments": "reset"}, "moments='reset' needs the optimizer"),
        ({"mode": "replace", "window": 3, "min_window": 2, "after_replace": "clear"}, "never fills the window of 3"),
        ({"mode": "replace", "every": 10, "replace_every": 15}, "replace_every=15 is not a multiple of every=10"),
        ({"mode": "replace", "every": 10, "window": 3, "replace_until": 29}, "replace_until=29 comes before .* at 30"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(LawaError, match=sentence):
        WeightAverager(toys.linear(), **settings)


def test_averaging_the_moments_needs_a_window() -> None:
    model = toys.linear()
    with pytest.raises(LawaError, match="moments='average' needs a window; 'a' is a running average"):
        replace(
            model, torch.optim.Adam(model.parameters()), averages={"a": EMA(0.9)}, replace_every=2, moments="average"
        )


def test_the_mode_has_no_default() -> None:
    with pytest.raises(TypeError, match="mode"):
        WeightAverager(toys.linear())  # type: ignore[call-arg]


def test_the_short_form_is_one_window_named_lawa_with_the_descriptions_defaults() -> None:
    assert evaluate(toys.linear()).averages == {"lawa": Window(10, every=1000, start=1, stop=None)}
    given_all = evaluate(
        toys.linear(), every=5, window=4, start=2, stop=40, coefficients="linear", min_window=2
    ).averages["lawa"]
    assert given_all == Window(4, every=5, start=2, stop=40, coefficients="linear", min_window=2)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("replace_with", "lawa"), ("after_replace", "clear"), ("replace_every", 2000), ("replace_until", 20000),
        ("strength", 0.5), ("moments", "keep"),
    ],
)  # fmt: skip
def test_a_setting_without_effect_is_warned_about(setting: str, value: Any) -> None:
    with pytest.warns(UserWarning, match=f"{setting}={value!r} has no effect with mode='evaluate'"):
        evaluate(toys.linear(), **{setting: value})
    model = toys.linear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        replace(model, torch.optim.Adam(model.parameters()), **{setting: value})


def test_averages_are_described_in_a_line() -> None:
    assert str(Window(3, every=5, coefficients={"ema": 0.5})) == "window 3, every 5, {'ema': 0.5}"
    assert str(Window(2, every=5, coefficients=[0.5, 0.5])) == "window 2, every 5, [0.5, 0.5]"
    assert str(EMA(0.999)) == "EMA beta 0.999, every 1"
    assert str(RunningMean(start=7)) == "running mean from 7, every 1"


# ---- steps between which there is no order


@settings(deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=12), st.integers(1, 3), st.integers(1, 3))
def test_a_trainer_that_jumps_captures_only_where_it_lands(jumps: list[int], every: int, size: int) -> None:
    model = toys.linear((0.0,))
    averager = evaluate(model, every=every, window=size)
    t, landed = 0, []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for jump in jumps:
            t += jump
            landed.append(t)
            averager.update(step=t)
    missed = [step for before, step in pairwise(landed) if step > (before // every + 1) * every]
    assert len(said) == (1 if missed else 0), "once"
    assert averager.steps() == [step for step in landed if step % every == 0][-size:]
    assert all(earlier < later for earlier, later in pairwise(averager.steps()))


@pytest.mark.parametrize("attribute", ["fp32_from_fp16_groups", "shard_fp32_from_float16_groups"])
def test_an_optimizer_with_masters_of_its_own_is_refused(attribute: str) -> None:
    """apex's and Megatron's would write their masters over the replaced weights at the next step."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    setattr(optimizer, attribute, [])
    with pytest.raises(LawaError, match=f"SGD keeps fp32 masters of its own \\({attribute}\\)"):
        WeightAverager(model, optimizer, mode="evaluate")


def test_after_close_the_optimizer_has_no_hook_of_ours() -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    averager = WeightAverager(model, optimizer, mode="evaluate", every=1, window=2, placement="host")
    averager.attach()
    assert optimizer._optimizer_step_pre_hooks
    assert optimizer._optimizer_step_post_hooks
    averager.close()
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_averaged_buffers_keep_a_host_copy_from_overlapping() -> None:
    """BatchNorm's statistics change in the next forward, which no optimizer hook comes before."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for buffers, overlaps in (("latest", True), ("average", False)):
        averager = WeightAverager(model, optimizer, mode="evaluate", placement="host", buffers=buffers)
        assert averager._store.overlap is overlaps  # type: ignore[attr-defined]


def test_masters_inside_others_are_refused_too() -> None:
    """Megatron chains its optimizers, apex hides its masters in a stash."""
    model = nn.Linear(2, 2)
    inner = torch.optim.SGD(model.parameters(), 0.1)
    inner.shard_fp32_from_float16_groups = []  # type: ignore[attr-defined]
    chained = torch.optim.SGD(model.parameters(), 0.1)
    chained.chained_optimizers = [inner]  # type: ignore[attr-defined]
    stashed = torch.optim.SGD(model.parameters(), 0.1)
    stashed._amp_stash = type("Stash", (), {"fp32_from_fp16_groups": []})()  # type: ignore[attr-defined]
    for optimizer in (chained, stashed):
        with pytest.raises(LawaError, match="keeps fp32 masters of its own"):
            WeightAverager(model, optimizer, mode="evaluate", every=1)
