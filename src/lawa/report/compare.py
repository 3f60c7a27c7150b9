"""How far an arm is ahead of the baseline: by loss at the same update, and by updates at the same loss.

    gain(t)        baseline(t) − arm(t), in nats per token: positive is better
    reached(L)     the first update at which the line through a curve's evaluations is at or below L
    updates saved  T − reached_arm(baseline(T)), where T is the baseline's last evaluation
    ahead(t)       reached_baseline(arm(t)) − t: how many updates later the baseline gets there;
                   None if it never does, which says only that it is more than T − t

A curve's line first falls to L exactly where the running minimum of that line does, so no separate
running minimum is needed. Nothing is said about a loss that is not finite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lawa.report.runs import Curve


@dataclass(frozen=True)
class At:
    """A value and the update it belongs to."""

    update: int
    value: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """An arm against the baseline. None where the curves do not allow a statement."""

    gain: float | None  # baseline's last loss − arm's last loss, nats per token
    gains: tuple[At, ...]  # at the updates at which both were evaluated
    largest_gain: At | None  # the first of equals
    updates_saved: float | None
    ahead: tuple[tuple[int, float | None], ...]  # (t, ahead(t)) at the arm's finite evaluations

    @property
    def most_ahead(self) -> At | None:
        """The largest known ahead(t), the first of equals."""
        known = (At(update, ahead) for update, ahead in self.ahead if ahead is not None)
        return max(known, key=lambda at: at.value, default=None)


def compare(arm: Curve, baseline: Curve) -> Comparison:
    """Compare two curves, each with at most one loss an update."""
    gains = tuple(gain for gain in _gains(arm, baseline) if math.isfinite(gain.value))
    reached = first_reached(arm, baseline.losses[-1]) if baseline.losses else None
    return Comparison(
        gain=_finite(baseline.losses[-1] - arm.losses[-1]) if arm.losses and baseline.losses else None,
        gains=gains,
        largest_gain=max(gains, key=lambda gain: gain.value, default=None),
        updates_saved=None if reached is None else baseline.updates[-1] - reached,
        ahead=tuple(
            (update, None if (there := first_reached(baseline, loss)) is None else there - update)
            for update, loss in zip(arm.updates, arm.losses, strict=True)
            if math.isfinite(loss)
        ),
    )


def first_reached(curve: Curve, level: float) -> float | None:
    """The first update at which the line through the curve's evaluations is at or below `level`.

    After an evaluation that is not finite there is no line: the next evaluation counts from its own
    update on. None if it never gets there, or if `level` is no finite number.
    """
    if not math.isfinite(level):
        return None
    before: At | None = None
    for update, loss in zip(curve.updates, curve.losses, strict=True):
        if loss <= level:
            if before is None or not math.isfinite(before.value):
                return float(update)
            return before.update + (update - before.update) * (before.value - level) / (before.value - loss)
        before = At(update, loss)
    return None


def _gains(arm: Curve, baseline: Curve) -> list[At]:
    there = dict(zip(baseline.updates, baseline.losses, strict=True))
    return [
        At(update, there[update] - loss)
        for update, loss in zip(arm.updates, arm.losses, strict=True)
        if update in there
    ]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
