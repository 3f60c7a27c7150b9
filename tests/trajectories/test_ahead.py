"""How many updates an average is ahead, by hand and against a literal search."""

import math
import random

import pytest

from lawa.trajectories.ahead import ahead, in_words

FALLING = {1000: 3.0, 2000: 2.5, 3000: 2.4, 4000: 2.0}


@pytest.mark.parametrize(
    ("t", "loss", "updates"),
    [
        (1000, 2.5, 1000.0),  # on a record
        (1000, 2.75, 500.0),  # half way to the next
        (2000, 2.1, 1750.0),  # between the two last: 3000 + 1000 · (2.4 − 2.1) / (2.4 − 2.0)
        (3000, 2.4, 0.0),
        (4000, 2.45, -1500.0),  # behind: the last earlier update at 2.45 is 2500
        (2000, 2.6, -200.0),
        (4000, 1.9, None),  # beyond the last step
        (1000, 1.9, None),
        (1000, 3.1, None),  # before the first step
        (2000, 3.5, None),
        (2000, math.nan, None),
        (2000, math.inf, None),
    ],
)
def test_by_hand(t, loss, updates):
    assert ahead(FALLING, t, loss) == (None if updates is None else pytest.approx(updates, abs=1e-9))


@pytest.mark.parametrize(
    ("t", "loss", "words"),
    [
        (2000, 2.1, "+1,750"),
        (4000, 2.45, "-1,500"),
        (3000, 2.4, "0"),
        (4000, 1.9, "beyond the last step"),
        (1000, 3.1, "before the first step"),
        (1000, math.nan, "not finite"),
    ],
)
def test_in_words(t, loss, words):
    assert in_words(FALLING, t, loss) == words


def test_of_a_noisy_run_the_first_later_and_the_last_earlier_crossing_count():
    noisy = {1: 3.0, 2: 2.0, 3: 2.8, 4: 2.2, 5: 2.6, 6: 1.0}
    assert ahead(noisy, 3, 2.5) == pytest.approx(0.5)  # that the run was lower at 2 does not make it less
    assert ahead(noisy, 5, 2.4) == pytest.approx(0.125)
    assert ahead(noisy, 4, 2.5) == pytest.approx(-0.5)
    assert ahead(noisy, 6, 2.3) == pytest.approx(5 + 0.3 / 1.6 - 6)


def test_there_is_no_line_over_a_loss_that_is_not_finite():
    broken = {1: 3.0, 2: math.nan, 3: 2.0, 4: 1.0}
    assert ahead(broken, 1, 2.5) == 2.0  # the record's own update, and nothing between
    assert ahead(broken, 4, 2.9) == -3.0
    assert ahead(broken, 2, 2.0) is None


def test_against_a_literal_search():
    dice = random.Random(0)
    for _ in range(200):
        plain = {10 * i: dice.uniform(1, 3) for i in range(1, 9)}
        t, loss = dice.choice(list(plain)), dice.uniform(0.8, 3.2)
        later = plain[t] > loss
        found = None
        for a in sorted(plain, reverse=not later):
            b = a + (10 if later else -10)
            if (a < t if later else a > t) or b not in plain:
                continue
            # the line from a to b, at a thousand places
            places = [a + (b - a) * i / 1000 for i in range(1001)]
            heights = [plain[a] + (plain[b] - plain[a]) * i / 1000 for i in range(1001)]
            hit = next((x for x, y in zip(places, heights, strict=True) if (y <= loss if later else y >= loss)), None)
            if hit is not None:
                found = hit - t
                break
        told = ahead(plain, t, loss)
        assert (told is None) == (found is None)
        assert told is None or found is None or abs(told - found) <= 0.011
