"""When captures and replacements fall, against twins that enumerate every update."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

import twins
from lawa.cadence import Cadence, ReplacementCadence, whole
from lawa.errors import LawaError

LAST = 24


# ---- captures


@pytest.mark.parametrize("every", range(1, 7))
@pytest.mark.parametrize("start", range(1, 9))
@pytest.mark.parametrize("stop", [None, *range(1, 15)])
def test_captures_are_the_multiples_between_start_and_stop_with_both_ends_included(
    every: int, start: int, stop: int | None
) -> None:
    expected = twins.captures(every, start, stop, LAST)
    if not expected:
        with pytest.raises(LawaError, match=rf"start={start}, stop={stop}, every={every} is never due"):
            Cadence(every=every, start=start, stop=stop)
        return
    cadence = Cadence(every=every, start=start, stop=stop)
    assert [t for t in range(LAST + 1) if cadence.due(t)] == expected
    assert cadence.first() == expected[0]
    for until in range(LAST + 1):
        assert list(cadence.updates(until)) == [t for t in expected if t <= until]
    for t in range(LAST):
        following = [later for later in expected if later > t]
        assert cadence.after(t) == (following[0] if following else None if stop else t - t % every + every)
    for n, t in enumerate(expected, start=1):
        assert cadence.nth(n) == t
    after_the_last = cadence.nth(len(expected) + 1)
    assert after_the_last is None if stop is not None else after_the_last == expected[-1] + every


def test_the_defaults_are_the_descriptions() -> None:
    assert Cadence() == Cadence(every=1000, start=1, stop=None)
    assert list(Cadence().updates(3500)) == [1000, 2000, 3000]


def test_there_is_no_update_zero() -> None:
    assert not Cadence(every=1).due(0)
    assert Cadence(every=1).due(1)


@pytest.mark.parametrize("name", ["every", "start", "stop"])
@pytest.mark.parametrize("bad", [0, -1, True, False, 2.0, 2.5, "2", None, [2], np.float32(2)])
def test_what_is_no_whole_number_of_at_least_one_is_refused_by_name(name: str, bad: object) -> None:
    if name == "stop" and bad is None:
        return
    with pytest.raises(LawaError, match=rf"^{name}=.*at least 1"):
        Cadence(**{name: bad})


def test_numpys_integers_are_whole_numbers() -> None:
    assert list(Cadence(every=np.int64(2), start=np.int32(3)).updates(8)) == [4, 6, 8]
    assert type(whole(np.int64(3), "n", at_least=1)) is int


# ---- replacements


def replacement(
    every: int, size: int | None, needed: int, replace_every: int, until: int | None, clear: bool, stop: int | None
) -> ReplacementCadence:
    return ReplacementCadence(
        captures=Cadence(every=every, start=2, stop=stop),
        window=size,
        min_window=needed,
        every=replace_every,
        until=until,
        clear=clear,
    )


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("clear", [False, True])
def test_replacements_fall_where_the_twin_puts_them(every: int, size: int, clear: bool) -> None:
    checked = 0
    for needed, factor, until, stop in product(
        range(1, size + 1), [1, 2, 3, 5], [None, *range(1, 20, 3)], [None, 7, 12]
    ):
        captured = twins.captures(every, 2, stop, LAST)
        expected = twins.replacements(
            captured, LAST, window=size, min_window=needed, replace_every=factor * every, replace_until=until,
            clear=clear,
        )  # fmt: skip
        settings = (every, size, needed, factor * every, until, clear, stop)
        if (clear and needed < size) or not expected:
            with pytest.raises(LawaError):
                replacement(*settings)
            continue
        cadence = replacement(*settings)
        for last in range(LAST + 1):
            assert list(cadence.updates(last)) == [t for t, _ in expected if t <= last], settings
        assert drive(cadence, size) == expected, settings
        checked += 1
    assert checked > 20


def drive(cadence: ReplacementCadence, size: int | None) -> list[tuple[int, tuple[int, ...]]]:
    """Ask `due` at every update, as an averager does."""
    held: list[int] = []
    last, found = None, []
    for t in range(1, LAST + 1):
        if cadence.captures.due(t):
            held = [*held, t] if size is None else [*held, t][-size:]
        if cadence.due(t, held=len(held), last=last):
            found.append((t, tuple(held)))
            last = t
            held = [] if cadence.clear else held
    return found


@pytest.mark.parametrize("clear", [False, True])
@pytest.mark.parametrize("replace_every", [1, 4, 7])
def test_a_running_average_replaces_from_its_first_reading_on(clear: bool, replace_every: int) -> None:
    cadence = ReplacementCadence(captures=Cadence(every=1, start=3), every=replace_every, clear=clear)
    expected = twins.replacements(
        twins.captures(1, 3, None, LAST), LAST, window=None, min_window=1, replace_every=replace_every, clear=clear
    )
    assert list(cadence.updates(LAST)) == [t for t, _ in expected] == list(range(3, LAST + 1, replace_every))


def test_slide_replaces_at_every_capture_once_full_and_clear_only_when_full_again() -> None:
    """The description by hand: N = 10, M = 3."""
    captures = Cadence(every=10)
    assert list(ReplacementCadence(captures=captures, window=3).updates(70)) == [30, 40, 50, 60, 70]
    assert list(ReplacementCadence(captures=captures, window=3, clear=True).updates(70)) == [30, 60]
    assert list(ReplacementCadence(captures=captures, window=3, min_window=2, every=20).updates(70)) == [20, 40, 60]
    assert list(ReplacementCadence(captures=captures, window=3, until=40).updates(70)) == [30, 40]


def test_clear_waits_for_replace_every_with_a_window_that_slides_meanwhile() -> None:
    cadence = ReplacementCadence(captures=Cadence(every=1), window=2, every=5, clear=True)
    assert list(cadence.updates(15)) == [2, 7, 12]
    assert drive(cadence, 2) == [(2, (1, 2)), (7, (6, 7)), (12, (11, 12)), (17, (16, 17)), (22, (21, 22))]


def test_a_skipped_replacement_still_counts_as_the_last_one() -> None:
    """`last` is what the averager says it is; due only looks at the distance."""
    cadence = ReplacementCadence(captures=Cadence(every=2), window=1, every=4)
    assert cadence.due(2, held=1, last=None)
    assert not cadence.due(4, held=1, last=2)
    assert cadence.due(6, held=1, last=2)
    assert not cadence.due(7, held=1, last=2), "no capture, no replacement"
    assert not cadence.due(6, held=0, last=2), "an empty window replaces nothing"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"window": 4, "every": 15}, "replace_every=15 is not a multiple of every=10"),
        ({"window": 4, "every": 5}, "replace_every=5 is not a multiple of every=10"),
        ({"window": 4, "min_window": 5}, "min_window=5 is more than the window of 4 ever holds"),
        ({"window": 4, "min_window": 3, "clear": True}, "never fills the window of 4"),
        ({"window": 4, "until": 39}, "replace_until=39 comes before the first possible replacement at 40"),
        ({"window": 4, "min_window": 2, "until": 19}, "replace_until=19 comes before .* at 20"),
        ({"window": 10}, "captures stop at 90, before 10 snapshots are held"),
        ({"window": 4, "every": 0}, "replace_every=0 must be at least 1"),
        ({"window": 4, "every": True}, "replace_every=True must be a whole number"),
        ({"window": 4, "every": 10.0}, "replace_every=10.0 must be a whole number"),
        ({"window": 4, "min_window": 0}, "min_window=0 must be at least 1"),
        ({"window": 4, "min_window": "2"}, "min_window='2' must be a whole number"),
        ({"window": 4, "until": 0}, "replace_until=0 must be at least 1"),
        ({"window": 4, "until": False}, "replace_until=False must be a whole number"),
        ({"window": 4, "until": 50.0}, "replace_until=50.0 must be a whole number"),
    ],
)
def test_impossible_replacements_are_refused_with_the_reason(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(LawaError, match=sentence):
        ReplacementCadence(captures=Cadence(every=10, stop=90), **settings)  # type: ignore[arg-type]


def test_the_neighbours_of_the_impossible_are_possible() -> None:
    captures = Cadence(every=10, stop=90)
    assert list(ReplacementCadence(captures=captures, window=4, until=40).updates(99)) == [40]
    assert list(ReplacementCadence(captures=captures, window=9).updates(99)) == [90]
    assert list(ReplacementCadence(captures=captures, window=4, every=20).updates(99)) == [40, 60, 80]
    assert list(ReplacementCadence(captures=captures, window=4, min_window=4, clear=True).updates(99)) == [40, 80]
