"""How many updates an average is ahead of its run. No torch.

With L the average's loss at update t, and the line through the run's own (plain) losses:

    plain(t) > L    ahead = t′ − t, t′ the first later update at which the line is at or below L
    plain(t) = L    0
    plain(t) < L    ahead = t′ − t, t′ the last earlier update at which the line is at or above L: negative, behind

There is no such t′ where the run never gets there within its evaluated steps, and no number then.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

BEYOND, BEFORE = "beyond the last step", "before the first step"


def ahead(plain: Mapping[int, float], t: int, loss: float) -> float | None:
    """Updates that `loss` at `t` is ahead of the run, negative: behind; None beyond its last step or before its first.

    plain  {update: loss}, t among them, in nats per token or any one unit; what is not finite breaks the line

    >>> ahead({1000: 3.0, 2000: 2.5, 3000: 2.3}, 1000, 2.4)
    1500.0
    """
    own = plain[t]
    if own == loss:
        return 0.0
    if not (math.isfinite(own) and math.isfinite(loss)):
        return None
    if own > loss:
        there = _crossing([(u, plain[u] - loss) for u in sorted(plain) if u >= t])
    else:
        there = _crossing([(u, loss - plain[u]) for u in sorted(plain, reverse=True) if u <= t])
    return None if there is None else there - t


def in_words(plain: Mapping[int, float], t: int, loss: float) -> str:
    """The same for a person.

    >>> in_words({1000: 3.0, 2000: 2.5}, 1000, 2.4)
    'beyond the last step'
    """
    updates = ahead(plain, t, loss)
    if updates is not None:
        return f"{updates:+,.0f}" if round(updates) else "0"
    if not (math.isfinite(plain[t]) and math.isfinite(loss)):
        return "not finite"
    return BEYOND if loss < plain[t] else BEFORE


def _crossing(above: Iterable[tuple[int, float]]) -> float | None:
    """Where the line through (update, height), of which the first is above 0, first comes down to 0."""
    update, height = None, math.nan
    for following, lower in above:
        if lower <= 0:
            if update is None or not math.isfinite(height):
                return float(following)  # after a gap there is no line
            return update + (following - update) * height / (height - lower)
        update, height = following, lower
    return None
