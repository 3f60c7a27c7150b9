"""The means that are asked for: which checkpoints each has, how it is called, and which cannot be had."""

from __future__ import annotations

from typing import Any

import pytest

from lawa.averaging.coefficients import coefficients
from lawa.checkpoints.select import Found
from lawa.errors import UsageError
from lawa.offline.windows import Windows, families_of, family_name, parse_family, used


def found(count: int) -> list[Found]:
    return [Found(label=f"step{step}", step=step) for step in range(100, 100 * count + 1, 100)]


def made(count: int, **windows: Any) -> dict[str, tuple[int, ...]]:
    return {mean.name: mean.inputs for mean in Windows(**windows).means(found(count))[0]}


@pytest.mark.parametrize(
    ("windows", "expected"),
    [
        ({}, {"": (0, 1, 2, 3, 4, 5)}),
        ({"sizes": (2,)}, {"": (4, 5)}),
        ({"sizes": (3,), "spacing": 2}, {"": (1, 3, 5)}),
        ({"sizes": (2, 4)}, {"window2": (4, 5), "window4": (2, 3, 4, 5)}),
        ({"families": ("uniform", "linear")}, {"uniform": tuple(range(6)), "linear": tuple(range(6))}),
        (
            {"sizes": (5,), "rolling": True},
            {"step00000500": (0, 1, 2, 3, 4), "step00000600": (1, 2, 3, 4, 5)},
        ),
        (
            {"sizes": (1, 3), "spacing": 2, "rolling": True, "families": ("uniform", {"ema": 0.5})},
            {
                **{
                    f"window1-{one}/step00000{step}00": (step - 1,)
                    for step in range(1, 7)
                    for one in ("uniform", "ema0.5")
                },
                **{
                    f"window3-{one}/step00000{step}00": (step - 5, step - 3, step - 1)
                    for step in (5, 6)
                    for one in ("uniform", "ema0.5")
                },
            },
        ),
    ],
)  # fmt: skip
def test_what_each_mean_has(windows: dict[str, Any], expected: dict[str, tuple[int, ...]]) -> None:
    assert made(6, **windows) == expected


def test_weights_are_the_familys_and_uniform_has_none() -> None:
    means, notes = Windows(sizes=(3,), families=("uniform", "linear", {"decay": "cosine"})).means(found(4))
    assert [mean.coefficients for mean in means] == [
        None, coefficients("linear", 3), coefficients({"decay": "cosine"}, 3),
    ]  # fmt: skip
    assert notes == []


def test_steps_without_a_whole_window_are_told_once() -> None:
    _, notes = Windows(sizes=(1, 3), rolling=True, families=("uniform", "linear")).means(found(4))
    assert notes == ["no whole window of 3 ends at the first 2 of the 4 steps; skipped"]


@pytest.mark.parametrize(
    ("windows", "sentence"),
    [
        ({"sizes": (5,)}, "a window of 5, spacing 1, spans 5 checkpoints, and there are 4"),
        ({"sizes": (3,), "spacing": 2, "rolling": True}, "a window of 3, spacing 2, spans 5 checkpoints"),
        ({"sizes": (0,)}, r"window=\(0,\) must be whole numbers of checkpoints, and at least 1"),
        ({"sizes": (2,), "spacing": 0}, "spacing=0 must be whole numbers of checkpoints, and at least 1"),
        ({"rolling": True}, "give --window K"),
        ({"spacing": 2}, "give --window K"),
        ({"sizes": (3, 3)}, "window=3 was given twice"),
        ({"families": ("linear", "linear")}, "coefficients='linear' was given twice"),
        ({"families": ([0.5, 0.5], [0.5, 0.5])}, r"coefficients=\[0\.5, 0\.5\] was given twice"),
        ({"sizes": ()}, r"window=\(\) must be whole numbers"),
        ({"sizes": "35"}, r"window='35' must be whole numbers"),
        ({"sizes": (2.5,)}, r"window=\(2\.5,\) must be whole numbers"),
        ({"sizes": (2,), "spacing": "2"}, r"spacing='2' must be whole numbers"),
        ({"families": ("lineal",)}, "coefficients='lineal' is unknown"),
        ({"families": ((0.5, 0.5),)}, "2 coefficients were given for 4 snapshots"),
    ],
)
def test_what_cannot_be_had(windows: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        made(4, **windows)


def test_several_lists_of_numbers_are_numbered() -> None:
    lists = ([0.25, 0.75], [0.75, 0.25])
    decays = ({"decay": [1, 0.5, 0]}, {"decay": [1, 0.25, 0]})
    named = made(2, families=("uniform", *lists, *decays))
    assert list(named) == ["uniform", "explicit1", "explicit2", "decay-values1", "decay-values2"]
    assert list(made(2, sizes=(2,), families=("linear", lists[0]))) == ["linear", "explicit"]
    assert list(made(2, sizes=(2,), rolling=True, families=lists)) == [
        "explicit1/step00000200",
        "explicit2/step00000200",
    ]


def test_checkpoints_that_no_mean_has_are_left_out() -> None:
    everything = found(6)
    means, _ = Windows(sizes=(2, 3), spacing=2).means(everything)
    chosen, moved = used(everything, means)
    assert [one.step for one in chosen] == [200, 400, 600]
    assert [mean.inputs for mean in moved] == [(1, 2), (0, 1, 2)]


@pytest.mark.parametrize(
    ("text", "family", "name"),
    [
        ("uniform", "uniform", "uniform"),
        ("one_minus_sqrt", "one_minus_sqrt", "one_minus_sqrt"),
        ("ema:0.9", {"ema": 0.9}, "ema0.9"),
        ("decay:cosine", {"decay": "cosine"}, "decay-cosine"),
        ("decay:1,0.5,0", {"decay": [1.0, 0.5, 0.0]}, "decay-values"),
        ("0.25,0.75", [0.25, 0.75], "explicit"),
    ],
)
def test_families_as_they_are_typed(text: str, family: Any, name: str) -> None:
    assert parse_family(text) == family
    assert family_name(family) == name


@pytest.mark.parametrize("text", ["ema:x", "0.1,x", "decay:1,x"])
def test_families_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match=r"--coefficients .* is unknown; write uniform"):
        parse_family(text)


def test_one_family_or_several() -> None:
    assert families_of("linear") == ("linear",)
    assert families_of({"ema": 0.5}) == ({"ema": 0.5},)
    assert families_of([0.5, 0.5]) == ([0.5, 0.5],)
    assert families_of(["uniform", {"ema": 0.5}, [0.5, 0.5]]) == ("uniform", {"ema": 0.5}, [0.5, 0.5])
