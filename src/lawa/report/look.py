"""What the picture and the page share: a colour for each arm, and the part of the plane worth seeing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lawa.report.arms import Arm

# Okabe and Ito's colour-blind-safe palette (https://jfly.uni-koeln.de/color/) without its yellow and
# black, which vanish on white and on black; the baseline is grey, being what the others are read against.
BASELINE = "#767b85"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DASHES = ("solid", "dash", "dot")  # one more round of the palette, one more dash


@dataclass(frozen=True)
class Stroke:
    colour: str
    dash: str  # of DASHES


def strokes(arms: Sequence[Arm]) -> list[Stroke]:
    """One for each arm, the baseline first."""
    others = [Stroke(COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)]) for i in range(len(arms) - 1)]
    return [Stroke(BASELINE, "solid"), *others]


def loss_range(arms: Sequence[Arm]) -> tuple[float, float]:
    """From the lowest loss to the typical arm's highest after the first fifth of training.

    The initial fall would flatten every difference, and so would an arm that diverged: the median over
    the arms decides. An arm that ends less than three such heights up stays in view.
    """
    begin = _settled(arms)
    tails = [_finite(arm.curve.losses, arm.curve.updates, begin) for arm in arms]
    tails = [tail for tail in tails if tail]
    if not tails:
        return 0.0, 1.0
    low = min(min(tail) for tail in tails)
    highs = sorted(max(tail) for tail in tails)
    high = highs[(len(highs) - 1) // 2]
    ends = [tail[-1] for tail in tails if tail[-1] <= low + 3 * (high - low)]
    return _padded(low, max([high, *ends]))


def gain_range(arms: Sequence[Arm]) -> tuple[float, float]:
    """Zero, and nine tenths of each arm's gains after the first fifth of training, with its last one.

    Losses of more than eight times the largest gain are cut off, or they would hide it.
    """
    begin = _settled(arms)
    low = high = 0.0
    for arm in arms:
        if arm.comparison is None or arm.diverged:
            continue
        gains = [gain.value for gain in arm.comparison.gains if gain.update >= begin]
        if gains:
            ordered = sorted(gains)
            low = min(low, gains[-1], ordered[round(0.05 * (len(gains) - 1))])
            high = max(high, gains[-1], ordered[round(0.95 * (len(gains) - 1))])
    if high > 0:
        low = max(low, -8 * high)
    return _padded(low, high)


def training_range(curves: Iterable[tuple[Sequence[int], Sequence[float]]]) -> tuple[float, float]:
    """As loss_range, for training losses, where single batches jump."""
    tails = [sorted(_finite(losses, updates, max(updates, default=0) / 5)) for updates, losses in curves]
    tails = [tail for tail in tails if tail]
    if not tails:
        return 0.0, 1.0
    highs = sorted(tail[round(0.98 * (len(tail) - 1))] for tail in tails)
    return _padded(min(tail[0] for tail in tails), highs[(len(highs) - 1) // 2])


def _settled(arms: Sequence[Arm]) -> float:
    return max((arm.final_update or 0 for arm in arms), default=0) / 5


def _finite(losses: Sequence[float], updates: Sequence[int], begin: float) -> list[float]:
    return [x for update, x in zip(updates, losses, strict=True) if update >= begin and math.isfinite(x)]


def _padded(low: float, high: float) -> tuple[float, float]:
    pad = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - pad, high + pad
