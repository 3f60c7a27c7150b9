"""Coefficients, oldest first: hand-derived numbers, sums, and what is refused."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import twins
from lawa import Window
from lawa.averaging.coefficients import DECAYS, coefficients, fixed_size, is_uniform
from lawa.errors import LawaError

EVERY_K: list[Any] = [
    "uniform",
    "linear",
    "one_minus_sqrt",
    {"ema": 0.9},
    {"ema": 0.001},
    {"decay": "linear"},
    {"decay": "cosine"},
    {"decay": "sqrt"},
    {"decay": lambda x: (1 - x) ** 3},
]


# ---- numbers derived by hand


def test_one_minus_sqrt_of_four_is_the_designs() -> None:
    """√(1/4) = .5, √(2/4) = .7071, √(3/4) = .8660, √1 = 1; the differences are the coefficients."""
    assert [round(c, 4) for c in coefficients("one_minus_sqrt", 4)] == [0.5, 0.2071, 0.1589, 0.1340]
    assert coefficients("one_minus_sqrt", 4) == pytest.approx(coefficients({"decay": "sqrt"}, 4), abs=1e-15)


def test_uniform_and_linear() -> None:
    assert coefficients("uniform", 4) == (0.25, 0.25, 0.25, 0.25)
    assert coefficients("linear", 4) == pytest.approx((0.1, 0.2, 0.3, 0.4), abs=1e-16)


def test_a_linear_decay_gives_the_uniform_mean() -> None:
    for k in range(1, 13):
        assert coefficients({"decay": "linear"}, k) == pytest.approx([1 / k] * k, abs=1e-15)
    assert coefficients({"decay": [1, 0.75, 0.5, 0.25, 0]}, 4) == (0.25, 0.25, 0.25, 0.25)


def test_ema_per_snapshot_weighs_the_newest_most() -> None:
    """β = 1/2, k = 3: powers 1/4, 1/2, 1 over their sum 7/4."""
    assert coefficients({"ema": 0.5}, 3) == pytest.approx((1 / 7, 2 / 7, 4 / 7), abs=1e-16)


def test_cosine_decay_of_two_and_four() -> None:
    """w = (1 + cos πx)/2 is 1, ½, 0 at x = 0, ½, 1; and ½ ± √2/4 at the quarters."""
    assert coefficients({"decay": "cosine"}, 2) == pytest.approx((0.5, 0.5), abs=1e-16)
    edge, middle = 0.5 - math.sqrt(2) / 4, math.sqrt(2) / 4
    assert coefficients({"decay": "cosine"}, 4) == pytest.approx((edge, middle, middle, edge), abs=1e-15)


def test_a_decay_gives_what_averaging_with_it_would_have_weighted() -> None:
    """WSM: c_i = w_i − w_{i+1}, so a step decay puts all weight on the snapshot before the step."""
    assert coefficients({"decay": [1, 1, 0, 0]}, 3) == (0, 1, 0)
    assert coefficients({"decay": [1, 1, 1, 0]}, 3) == (0, 0, 1)
    assert coefficients({"decay": [1, 0, 0, 0]}, 3) == (1, 0, 0)


@pytest.mark.parametrize("k", range(1, 10))
@pytest.mark.parametrize(
    ("name", "w"),
    [
        ("linear", lambda x: 1 - x),
        ("cosine", lambda x: (1 + math.cos(math.pi * x)) / 2),
        ("sqrt", lambda x: 1 - math.sqrt(x)),
    ],
)
def test_named_decays_are_the_twins(name: str, w: Any, k: int) -> None:
    assert coefficients({"decay": name}, k) == pytest.approx(twins.decay(w, k), abs=1e-15)
    assert coefficients({"decay": lambda x: float(w(Fraction(x)))}, k) == pytest.approx(twins.decay(w, k), abs=1e-15)


def test_the_named_decays_are_these() -> None:
    assert sorted(DECAYS) == ["cosine", "linear", "sqrt"]


def test_a_list_is_taken_as_it_is() -> None:
    assert coefficients([0.5, -0.25, 0.75], 3) == (0.5, -0.25, 0.75)
    assert coefficients((1,), 1) == (1.0,)


# ---- sums and signs


@pytest.mark.parametrize("spec", EVERY_K, ids=str)
@pytest.mark.parametrize("k", [1, 2, 3, 7, 10, 100, 1000])
def test_they_sum_to_one_and_none_is_negative(spec: Any, k: int) -> None:
    c = coefficients(spec, k)
    assert len(c) == k
    assert all(isinstance(c_i, float) for c_i in c)
    assert math.fsum(c) == pytest.approx(1, abs=1e-12)
    assert min(c) >= 0


@pytest.mark.parametrize("spec", ["linear", {"ema": 0.9}])
def test_these_grow_toward_the_newest(spec: Any) -> None:
    c = coefficients(spec, 8)
    assert list(c) == sorted(c)
    assert c[0] < c[-1]


def test_one_minus_sqrt_falls_toward_the_newest() -> None:
    c = coefficients("one_minus_sqrt", 8)
    assert list(c) == sorted(c, reverse=True)
    assert c[0] > c[-1]


@settings(deadline=None)
@given(st.floats(0.001, 0.999), st.integers(1, 50))
def test_ema_coefficients_have_the_ratio_beta(beta: float, k: int) -> None:
    c = coefficients({"ema": beta}, k)
    assert math.fsum(c) == pytest.approx(1)
    for older, newer in pairwise(c):
        assert older == pytest.approx(beta * newer, rel=1e-9, abs=1e-300)


# ---- what is refused


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("unifrom", "coefficients='unifrom' is unknown; write"),
        ("", "coefficients='' is unknown"),
        ({"ema": 1.0}, "beta lies strictly between 0 and 1"),
        ({"ema": 0}, "beta lies strictly between 0 and 1"),
        ({"ema": -0.5}, "beta lies strictly between 0 and 1"),
        ({"ema": "0.9"}, "beta lies strictly between 0 and 1"),
        ({"ema": True}, "beta lies strictly between 0 and 1"),
        ({"ema": math.nan}, "beta lies strictly between 0 and 1"),
        ({"ema": 0.9, "decay": "linear"}, "is unknown; write"),
        ({"sma": 3}, "is unknown; write"),
        ({}, "is unknown; write"),
        ({"decay": "exponential"}, "the named decays are linear, cosine, sqrt"),
        ({"decay": [1, 0.5, 0]}, r"needs k \+ 1 = 4 of them .* not 3"),
        ({"decay": [1, 0.2, 0.5, 0]}, "without rising"),
        ({"decay": [0.9, 0.5, 0.2, 0]}, "falls from w_0 = 1 to w_k = 0"),
        ({"decay": [1, 0.5, 0.2, 0.1]}, "falls from w_0 = 1 to w_k = 0"),
        ({"decay": lambda x: x}, "falls from w_0 = 1 to w_k = 0"),
        ({"decay": lambda x: 1 - math.sin(math.pi * x)}, "falls from w_0 = 1"),
        ({"decay": [1, math.nan, 0.2, 0]}, "falls from w_0 = 1"),
        ({"decay": [1, 0.5, math.nan, 0]}, "falls from w_0 = 1"),
        ({"decay": None}, "is unknown"),
        ({"decay": 3}, "is unknown"),
        ({"decay": ["a", 1, 2, 3]}, "is unknown"),
        ({"decay": lambda x: math.nan}, "falls from w_0 = 1"),
        ([0.5, 0.5], "2 coefficients were given for 3 snapshots"),
        ([], "0 coefficients were given for 3 snapshots"),
        ([0.5, 0.5, 0.5], "sum to 1.5; they must be finite and sum to 1"),
        ([math.inf, -math.inf, 1], "finite"),
        ([math.nan, 0.5, 0.5], "finite"),
        ([0.5, 0.5, "x"], "is unknown; write"),
        (5, "is unknown; write"),
        (None, "is unknown; write"),
    ],
    ids=str,
)
def test_refused_with_a_sentence_and_a_window_refuses_it_too(spec: Any, sentence: str) -> None:
    with pytest.raises(LawaError, match=sentence):
        coefficients(spec, 3)
    with pytest.raises(LawaError, match=sentence):
        Window(3, coefficients=spec)


def test_only_the_word_uniform_has_the_uniform_bits() -> None:
    assert is_uniform("uniform")
    for spec in ("linear", {"decay": "linear"}, [0.5, 0.5], {"ema": 0.5}):
        assert not is_uniform(spec)


def test_which_specifications_are_for_one_k_only() -> None:
    assert fixed_size([0.2, 0.3, 0.5]) == 3
    assert fixed_size({"decay": [1, 0.5, 0.2, 0]}) == 3
    assert [fixed_size(spec) for spec in EVERY_K] == [None] * len(EVERY_K)


@pytest.mark.parametrize("spec", [[0.2, 0.3, 0.5], {"decay": [1, 0.5, 0.2, 0]}], ids=str)
def test_what_is_for_one_k_only_needs_a_full_window(spec: Any) -> None:
    assert Window(3, coefficients=spec).needed == 3
    assert Window(3, coefficients=spec, min_window=3).needed == 3
    with pytest.raises(LawaError, match="need a full window of 3; leave min_window out"):
        Window(3, coefficients=spec, min_window=2)
