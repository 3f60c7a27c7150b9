"""The averages one can ask for: what each covers, and its own cadence. No torch, no state."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

from lawa.averaging.coefficients import Spec, coefficients, fixed_size
from lawa.cadence import Cadence, whole
from lawa.errors import LawaError


@dataclass(frozen=True)
class Window:
    """The average of the latest `size` snapshots (the paper's k, the description's M).

    size          how many snapshots it covers
    every         updates between captures (the paper's ν, the description's N)
    start, stop   the first and the last update at which it captures
    coefficients  see lawa.averaging.coefficients
    min_window    snapshots from which on it counts as ready; default: all of them
    """

    size: int = 10
    _: KW_ONLY
    every: int = 1000
    start: int = 1
    stop: int | None = None
    coefficients: Spec = "uniform"
    min_window: int | None = None

    def __post_init__(self) -> None:
        size = whole(self.size, "window", at_least=1)
        if self.min_window is not None and whole(self.min_window, "min_window", at_least=1) > size:
            raise LawaError(f"min_window={self.min_window} is more than the window of {size} ever holds")
        if self.cadence.nth(self.needed) is None:
            raise LawaError(
                f"a window of {size} every {self.every} updates never fills: captures stop at {self.stop}, "
                f"after {len(self.cadence.updates(self.stop or 0))} of {self.needed}"
            )
        coefficients(self.coefficients, size)  # raises where they cannot be had
        if fixed_size(self.coefficients) is not None and self.needed < size:
            raise LawaError(f"coefficients given one by one need a full window of {size}; leave min_window out")

    @property
    def cadence(self) -> Cadence:
        return Cadence(every=self.every, start=self.start, stop=self.stop)

    @property
    def needed(self) -> int:
        """Snapshots from which on the average counts as ready."""
        return self.size if self.min_window is None else self.min_window

    def __str__(self) -> str:
        return f"window {self.size}, every {self.every}, {_coefficients_text(self.coefficients)}"


@dataclass(frozen=True)
class EMA:
    """e ← e + (1 − β)(θ − e) every `every` updates, from e = its first reading θ; fp32 state.

    beta is per reading, not per update: at every=10, β = 0.9 remembers about 100 updates.
    """

    beta: float
    _: KW_ONLY
    every: int = 1
    start: int = 1
    stop: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.beta, bool) or not isinstance(self.beta, (int, float)) or not 0 < self.beta < 1:
            raise LawaError(f"EMA beta={self.beta!r} must lie strictly between 0 and 1")
        _ = self.cadence  # raises where it is impossible

    @classmethod
    def matched(cls, window: Window, *, every: int = 1) -> EMA:
        """The EMA with the mean age of a full uniform `window` of k snapshots every N updates.

        The window's mean age is N(k − 1)/2 updates, an EMA's is every·β/(1 − β);
        so β = 1 − 2·every/(N(k − 1) + 2·every).
        """
        span = window.every * (window.size - 1)
        if span == 0:
            raise LawaError("a window of 1 has mean age 0, which no EMA matches")
        return cls(1 - 2 * every / (span + 2 * every), every=every, start=window.start, stop=window.stop)

    @property
    def cadence(self) -> Cadence:
        return Cadence(every=self.every, start=self.start, stop=self.stop)

    @property
    def needed(self) -> int:
        return 1

    def __str__(self) -> str:
        return f"EMA beta {self.beta:.6g}, every {self.every}"


@dataclass(frozen=True)
class RunningMean:
    """The mean of every reading since `start` (SWA): the sum is kept in fp32 and scaled when it is read.

    So the mean of n readings has the bits of a uniform window over the same n snapshots.
    """

    _: KW_ONLY
    every: int = 1
    start: int = 1
    stop: int | None = None

    def __post_init__(self) -> None:
        _ = self.cadence  # raises where it is impossible

    @property
    def cadence(self) -> Cadence:
        return Cadence(every=self.every, start=self.start, stop=self.stop)

    @property
    def needed(self) -> int:
        return 1

    def __str__(self) -> str:
        return f"running mean from {self.start}, every {self.every}"


Average = Window | EMA | RunningMean


def rule(average: Average) -> str:
    """What a saved state of `average` means, whatever its size: it goes on under the same rule or means another."""
    if isinstance(average, Window):
        return f"window every {average.every}, {_coefficients_text(average.coefficients)}"
    return str(average)


def named_averages(averages: Mapping[str, Average] | None, short: Mapping[str, Any]) -> dict[str, Average]:
    """{name: average} of the long form, or of the short form's settings: one window named "lawa"."""
    if averages is None:
        return {"lawa": Window(**short)}
    if short:
        raise LawaError(f"{', '.join(short)} belong to the short form; with averages=, set them in each Window")
    if not averages:
        raise LawaError("averages is empty; name at least one, as {'lawa': Window(10, every=1000)}")
    for name, average in averages.items():
        if not isinstance(average, Average):
            raise LawaError(f"average {name!r} is {average!r}; it must be a Window, an EMA or a RunningMean")
        if not name or "/" in name or name in ("plain", "replaced", ".", ".."):
            raise LawaError(f"{name!r} cannot name an average; 'plain', 'replaced' and names with a slash are taken")
    return dict(averages)


def snapshots_needed(windows: Sequence[Window], *, captures: int = 10_000) -> int:
    """How many different snapshots the windows hold at most at the same time.

    Found by walking through their captures until what they hold repeats itself; windows that show no such
    period in that many captures get the sum of their sizes, which is never too small.
    """
    held: list[deque[int]] = [deque(maxlen=window.size) for window in windows]
    most = t = 0
    seen: set[tuple[tuple[int, ...], ...]] = set()
    for _ in range(captures):
        coming = [following for window in windows if (following := window.cadence.after(t)) is not None]
        if not coming:
            return most
        t = min(coming)
        for window, steps in zip(windows, held, strict=True):
            if window.cadence.due(t):
                steps.append(t)
        most = max(most, len({step for steps in held for step in steps}))
        # It repeats once every window is full and either goes on for ever or has stopped and shares nothing more.
        going = [(w, steps) for w, steps in zip(windows, held, strict=True) if w.cadence.after(t) is not None]
        last = max((steps[-1] for steps in held if all(steps is not other for _, other in going)), default=0)
        if all(w.stop is None and len(steps) == w.size and steps[0] > last for w, steps in going):
            ages = tuple(tuple(t - step for step in steps) for _, steps in going)
            if ages in seen:
                return most
            seen.add(ages)
    return sum(window.size for window in windows)


def _coefficients_text(spec: Spec) -> str:
    return spec if isinstance(spec, str) else str(dict(spec) if hasattr(spec, "keys") else list(spec))  # type: ignore[call-overload]
