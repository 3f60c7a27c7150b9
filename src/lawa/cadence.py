"""When to capture and when to replace: integers only.

t is the trainer's update: t global batches have been consumed. t ≥ 1, there is no θ_0.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass

from lawa.errors import LawaError


@dataclass(frozen=True, kw_only=True)
class Cadence:
    """Due at t when start ≤ t ≤ stop and t % every == 0. All in updates; stop None means never.

    >>> [t for t in range(1, 10) if Cadence(every=3, start=4).due(t)]
    [6, 9]
    """

    every: int = 1000
    start: int = 1
    stop: int | None = None

    def __post_init__(self) -> None:
        whole(self.every, "every", at_least=1)
        whole(self.start, "start", at_least=1)
        if self.stop is not None:
            whole(self.stop, "stop", at_least=1)
            if self.first() > self.stop:
                raise LawaError(
                    f"start={self.start}, stop={self.stop}, every={self.every} is never due: "
                    f"the first multiple of every from start on is {self.first()}"
                )

    def due(self, t: int) -> bool:
        return t >= self.start and (self.stop is None or t <= self.stop) and t % self.every == 0

    def first(self) -> int:
        """The first update that is due."""
        return -(-self.start // self.every) * self.every

    def nth(self, n: int) -> int | None:
        """The n-th update that is due (n ≥ 1), or None when stop comes before it."""
        t = self.first() + (n - 1) * self.every
        return None if self.stop is not None and t > self.stop else t

    def after(self, t: int) -> int | None:
        """The first update after t that is due, or None when stop comes before it."""
        following = max(self.first(), (t // self.every + 1) * self.every)
        return following if self.due(following) else None

    def updates(self, until: int) -> range:
        """Every update that is due up to and including `until`."""
        last = until if self.stop is None else min(until, self.stop)
        return range(self.first(), last + 1, self.every)


@dataclass(frozen=True, kw_only=True)
class ReplacementCadence:
    """When the model's weights become the average.

    A replacement falls due at a capture once `min_window` snapshots are held, and from then on
    whenever `every` updates have passed since the last one; none falls after `until`.
    With `clear` the window starts anew after each, so it must also fill again.

    captures    the cadence of the average that replaces
    window      how many snapshots it can hold (None: a running average, which never fills)
    min_window  snapshots needed; default: a full window (a running average: one reading)
    every       updates between replacements, a multiple of captures.every (the default)
    until       the last update at which a replacement may fall due; captures go on
    clear       whether the window is emptied after a replacement
    """

    captures: Cadence
    window: int | None = None
    min_window: int | None = None
    every: int | None = None
    until: int | None = None
    clear: bool = False

    def __post_init__(self) -> None:
        if self.every is None:
            object.__setattr__(self, "every", self.captures.every)
        if self.min_window is None:
            object.__setattr__(self, "min_window", self.window or 1)
        every = whole(self.every, "replace_every", at_least=1)
        needed = whole(self.min_window, "min_window", at_least=1)
        if every % self.captures.every:
            raise LawaError(
                f"replace_every={every} is not a multiple of every={self.captures.every}; "
                "replacements fall on captures, so choose a multiple"
            )
        if self.window is not None and needed > self.window:
            raise LawaError(f"min_window={needed} is more than the window of {self.window} ever holds")
        if self.clear and self.window is not None and needed < self.window:
            raise LawaError(
                f"after_replace='clear' with min_window={needed} never fills the window of {self.window}: "
                f"it is emptied as soon as it holds {needed}; choose window={needed}, or 'slide'"
            )
        if self.until is not None:
            whole(self.until, "replace_until", at_least=1)
        first = self.captures.nth(needed)
        if first is None:
            raise LawaError(f"captures stop at {self.captures.stop}, before {needed} snapshots are held")
        if self.until is not None and first > self.until:
            raise LawaError(f"replace_until={self.until} comes before the first possible replacement at {first}")

    def due(self, t: int, *, held: int, last: int | None) -> bool:
        """Whether a replacement falls due at t, with `held` snapshots (t's included) and the last one at `last`."""
        assert self.every is not None
        assert self.min_window is not None
        return (
            self.captures.due(t)
            and held >= self.min_window
            and (self.until is None or t <= self.until)
            and (last is None or t >= last + self.every)
        )

    def updates(self, until: int) -> Iterator[int]:
        """The updates of all replacements up to and including `until`, when none is skipped."""
        held, last = 0, None
        for t in self.captures.updates(until):
            held = held + 1 if self.window is None else min(held + 1, self.window)
            if self.due(t, held=held, last=last):
                yield t
                last = t
                held = 0 if self.clear else held


def whole(value: object, name: str, *, at_least: int) -> int:
    """`value` as an integer ≥ at_least; True, 3.0 and "3" are not integers here."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]  # what is no integer raises TypeError
    except TypeError:
        raise LawaError(f"{name}={value!r} must be a whole number of at least {at_least}") from None
    if number < at_least:
        raise LawaError(f"{name}={number} must be at least {at_least}")
    return number
