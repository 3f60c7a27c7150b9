"""How an average becomes the model's weights: which one, when, how far, and what Adam's moments do. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lawa.averaging.averages import Average, Window
from lawa.cadence import ReplacementCadence
from lawa.errors import LawaError

AFTER_REPLACE = ("slide", "clear")
MOMENTS = ("keep", "reset", "average")


@dataclass(frozen=True, kw_only=True)
class Replacement:
    """
    name      the average that replaces
    cadence   when, and whether its window is cleared afterwards
    strength  α of θ ← θ + α(average − θ)
    moments   keep, reset or average; see optimizer_state
    """

    name: str
    cadence: ReplacementCadence
    strength: float
    moments: str


def make_replacement(
    averages: Mapping[str, Average],
    *,
    replace_with: str | None,
    after_replace: str | None,
    replace_every: int | None,
    replace_until: int | None,
    strength: float | None,
    moments: str | None,
) -> Replacement:
    """The settings of WeightAverager with their defaults; LawaError where they contradict each other."""
    after = "slide" if after_replace is None else after_replace
    alpha = 1.0 if strength is None else strength
    moments = "keep" if moments is None else moments
    if after not in AFTER_REPLACE:
        raise LawaError(f"after_replace={after!r} must be 'slide' or 'clear'")
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 < alpha <= 1:
        raise LawaError(f"strength={alpha!r} must lie in (0, 1]; 1 replaces the weights by the average")
    if moments not in MOMENTS:
        raise LawaError(f"moments={moments!r} must be one of {', '.join(MOMENTS)}")
    if replace_with is None and len(averages) > 1:
        raise LawaError(f"replace_with must name the average that replaces: one of {', '.join(averages)}")
    name = next(iter(averages)) if replace_with is None else replace_with
    if name not in averages:
        raise LawaError(f"average {name!r} is unknown; name one of {', '.join(averages)}")
    average = averages[name]
    window = average if isinstance(average, Window) else None
    if window is None and replace_every is None:
        raise LawaError(f"replacing with {name!r}, a running average, needs replace_every")
    if window is None and moments == "average":
        raise LawaError(f"moments='average' needs a window; {name!r} is a running average")
    cadence = ReplacementCadence(
        captures=average.cadence,
        window=window.size if window else None,
        min_window=average.needed,
        every=replace_every,
        until=replace_until,
        clear=after == "clear",
    )
    return Replacement(name=name, cadence=cadence, strength=alpha, moments=moments)
