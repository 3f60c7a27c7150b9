"""Every number here was worked out by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lawa.report.compare import At, compare, first_reached
from lawa.report.runs import Curve

NAN, INF = math.nan, math.inf


def curve(points: dict[int, float]) -> Curve:
    return Curve("c", tuple(points), tuple(1024 * update for update in points), tuple(points.values()))


PLAIN = curve({100: 5.0, 200: 4.0, 300: 3.0, 400: 2.5})


def test_a_level_is_reached_between_evaluations_on_the_straight_line():
    assert first_reached(PLAIN, 4.75) == 125.0  # a quarter of the way from 5 to 4
    assert first_reached(PLAIN, 4.0) == 200.0
    assert first_reached(PLAIN, 2.6) == pytest.approx(380.0)  # 0.4 of 0.5 of the way from 300


def test_a_level_above_the_first_loss_is_reached_at_the_first_evaluation():
    assert first_reached(PLAIN, 6.0) == 100.0


def test_a_level_never_reached_and_an_empty_curve():
    assert first_reached(PLAIN, 2.4) is None
    assert first_reached(curve({}), 9.0) is None


def test_the_first_crossing_counts_though_the_loss_rises_again():
    bumpy = curve({100: 4.0, 200: 2.0, 300: 6.0, 400: 1.0})
    assert first_reached(bumpy, 3.0) == 150.0
    assert first_reached(bumpy, 1.5) == 390.0  # 4.5 of 5 of the way down from the bump, as the line goes


def test_no_line_is_drawn_from_a_loss_that_is_not_finite():
    assert first_reached(curve({100: NAN, 200: 2.0}), 3.0) == 200.0
    assert first_reached(curve({100: INF, 200: 2.0}), 3.0) == 200.0
    assert first_reached(curve({100: 5.0, 200: NAN, 300: 2.0}), 3.0) == 300.0


@pytest.mark.parametrize("level", [NAN, INF, -INF])
def test_a_level_that_is_not_finite_is_never_reached(level):
    assert first_reached(PLAIN, level) is None


def test_an_arm_that_is_better_everywhere():
    arm = compare(curve({200: 3.5, 300: 2.5, 400: 2.25}), PLAIN)
    assert arm.gain == 0.25
    assert arm.gains == (At(200, 0.5), At(300, 0.5), At(400, 0.25))
    assert arm.largest_gain == At(200, 0.5)  # the first of two equals
    assert arm.updates_saved == 100.0  # 2.5 at update 300
    assert arm.ahead == ((200, 50.0), (300, 100.0), (400, None))  # 3.5 at 250, 2.5 at 400, 2.25 never
    assert arm.most_ahead == At(300, 100.0)


def test_updates_saved_between_evaluations():
    arm = compare(curve({100: 4.0, 200: 3.5, 300: 1.5, 400: 1.0}), PLAIN)
    assert arm.updates_saved == 150.0  # 2.5 is half of the way from 3.5 to 1.5: update 250


def test_an_arm_that_is_behind():
    arm = compare(curve({200: 4.5, 400: 3.0}), PLAIN)
    assert arm.gain == -0.5
    assert arm.largest_gain == At(200, -0.5)
    assert arm.updates_saved is None
    assert arm.ahead == ((200, -50.0), (400, -100.0))  # plain had 4.5 at 150, 3.0 at 300


def test_a_tie():
    arm = compare(PLAIN, PLAIN)
    assert arm.gain == 0.0
    assert arm.largest_gain == At(100, 0.0)
    assert arm.updates_saved == 0.0
    assert arm.ahead == ((100, 0.0), (200, 0.0), (300, 0.0), (400, 0.0))


def test_a_longer_arm_that_gets_there_late_saves_less_than_nothing():
    assert compare(curve({400: 3.0, 500: 2.5}), PLAIN).updates_saved == -100.0


def test_an_arm_that_diverges():
    arm = compare(curve({100: 4.5, 200: NAN, 300: INF, 400: NAN}), PLAIN)
    assert arm.gain is None
    assert arm.gains == (At(100, 0.5),)
    assert arm.updates_saved is None
    assert arm.ahead == ((100, 50.0),)


def test_a_baseline_that_diverges():
    arm = compare(curve({100: 4.5, 400: 3.0}), curve({100: 5.0, 400: NAN}))
    assert arm.gain is None
    assert arm.largest_gain == At(100, 0.5)
    assert arm.updates_saved is None
    assert arm.ahead == ((100, None), (400, None))


def test_single_points():
    arm = compare(curve({400: 2.0}), curve({400: 2.5}))
    assert (arm.gain, arm.largest_gain, arm.updates_saved) == (0.5, At(400, 0.5), 0.0)
    assert arm.ahead == ((400, None),)


def test_curves_without_a_common_update_have_no_gains_but_still_an_end():
    arm = compare(curve({150: 4.0, 450: 2.0}), PLAIN)
    assert arm.gains == ()
    assert arm.largest_gain is None
    assert arm.gain == 0.5
    assert arm.updates_saved == 25.0  # 2.5 is three quarters of the way from 4 to 2: update 375


@pytest.mark.parametrize(("arm", "baseline"), [({}, {100: 1.0}), ({100: 1.0}, {}), ({}, {})])
def test_empty_curves_say_nothing(arm, baseline):
    comparison = compare(curve(arm), curve(baseline))
    assert (comparison.gain, comparison.gains, comparison.updates_saved) == (None, (), None)


QUARTERS = st.integers(2, 40).map(lambda n: n / 4)  # so that no rounding decides who was first
LOSSES = st.lists(QUARTERS, min_size=1, max_size=12)


@given(LOSSES, QUARTERS)
def test_reached_agrees_with_a_walk_along_the_line(losses, level):
    """A literal twin: look at the line at every thousandth of an interval."""
    line = curve({10 * (i + 1): loss for i, loss in enumerate(losses)})
    reached = first_reached(line, level)
    walked = None
    for step in range(1000 * (len(losses) - 1) + 1):
        i, part = divmod(step, 1000)
        here = losses[i] if part == 0 else losses[i] + (losses[i + 1] - losses[i]) * part / 1000
        if here <= level:
            walked = 10 * (i + 1) + part / 100
            break
    assert (walked is None) == (reached is None)
    assert walked == pytest.approx(reached, abs=0.0101)


@given(LOSSES)
def test_no_curve_is_ahead_of_itself_at_a_new_low(losses):
    line = curve({10 * (i + 1): loss for i, loss in enumerate(losses)})
    for i, (update, ahead) in enumerate(compare(line, line).ahead):
        assert ahead is not None
        assert ahead <= 0
        if i == 0 or losses[i] < min(losses[:i]):
            assert ahead == pytest.approx(0, abs=1e-6 * update)
