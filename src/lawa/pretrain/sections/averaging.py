"""The settings of averaging, checked with the same torch-free objects that the averager is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lawa.averaging.averages import EMA, Average, RunningMean, Window, named_averages
from lawa.averaging.replacement import make_replacement
from lawa.errors import LawaError, UsageError
from lawa.settings import check_at_least, check_choices, setting


@dataclass(frozen=True, kw_only=True)
class AveragingConfig:
    """The averages, and whether one of them replaces the weights; as lawa.WeightAverager takes them."""

    mode: str = setting(
        "evaluate",
        "evaluate: training never sees the averages; replace: it goes on from one",
        choices=("none", "evaluate", "replace"),
    )
    every: int | None = setting(None, "updates between captures of the window 'lawa' (default 1000)")
    window: int | None = setting(None, "how many snapshots the window 'lawa' covers (default 10)")
    start: int | None = setting(None, "the first update at which it captures (default 1)")
    stop: int | None = setting(None, "the last update at which it captures")
    coefficients: Any = setting(None, "uniform, linear, one_minus_sqrt, {ema: B}, {decay: W} or a list, oldest first")
    min_window: int | None = setting(None, "snapshots from which on it counts as ready (default: all)")
    averages: dict[str, Any] = setting(
        {},
        "in place of the one window, several averages by name: {window: K, every: N, …}, {ema: BETA, …}, "
        "{ema: {matches: NAME}, …}, {running_mean: START, …}; an arm drops one with null",
    )
    replace_with: str | None = setting(None, "the average that replaces; default: the only one")
    after_replace: str | None = setting(
        None, "slide (default): the window keeps its snapshots; clear: starts anew", choices=("slide", "clear")
    )
    replace_every: int | None = setting(None, "updates between replacements (default: every capture)")
    replace_until: int | None = setting(None, "the last update for a replacement")
    strength: float | None = setting(None, "α in (0, 1]: θ ← θ + α(average − θ) (default 1)")
    moments: str | None = setting(None, "Adam's on a replacement (default: keep)", choices=("keep", "reset", "average"))
    placement: str = setting(
        "device",
        "of snapshots; host: in pinned memory; disk: the run's own last checkpoints are the snapshots",
        choices=("device", "host", "disk"),
    )
    prefill: dict[str, Any] = setting(
        {},
        "{update: folder of weights} of earlier checkpoints of the run that training.start goes on with, which the "
        "windows hold from the beginning, with the start's own weights",
    )
    accumulate: str = setting("float32", "dtype of the sum", choices=("float32", "float64"))
    strict: bool = setting(False, "stop on a non-finite average instead of skipping its replacement")

    def __post_init__(self) -> None:
        check_choices(self, "averaging")
        check_at_least(self, "averaging", 1, "replace_every", "replace_until")
        if self.strength is not None and not 0 < self.strength <= 1:
            raise UsageError(f"averaging.strength={self.strength} must lie in (0, 1]; 1 replaces by the average")
        if self.averages and self.short:
            raise UsageError(
                f"averaging.{next(iter(self.short))} describes the one window 'lawa', but averaging.averages names "
                "its own; set it there"
            )
        try:
            named = self.named  # raises where they are impossible
        except UsageError:  # which names the average
            raise
        except LawaError as impossible:
            raise UsageError(f"averaging: {impossible}") from None
        if named and self.replace_with is not None and self.replace_with not in named:
            raise UsageError(f"averaging.replace_with={self.replace_with!r} is none of {', '.join(named)}")
        if self.mode == "replace":
            self._check_replacement(named)

    @property
    def prefilled(self) -> dict[int, str]:
        """{update: folder}, oldest first."""
        try:
            return {int(step): str(path) for step, path in sorted(self.prefill.items(), key=lambda one: int(one[0]))}
        except ValueError:
            raise UsageError(f"averaging.prefill={self.prefill!r} must map updates to folders of weights") from None

    def check_on_disk(self, every: int) -> None:
        """Raise where placement=disk lacks a checkpoint, one every `every` updates, for some capture of a window."""
        if self.placement != "disk":
            return
        if self.moments == "average":
            raise UsageError("averaging.moments=average needs snapshots with moments; placement=disk has weights only")
        for name, average in self.named.items():
            if isinstance(average, Window) and average.every % every:
                raise UsageError(
                    f"averaging.placement=disk: {name!r} captures every {average.every} updates, but checkpoints.every="
                    f"{every}; make it a divisor of {average.every}, or choose another placement"
                )

    def _check_replacement(self, named: Mapping[str, Average]) -> None:
        try:
            make_replacement(named, **self.replacing)
        except LawaError as impossible:
            raise UsageError(f"averaging: {impossible}") from None

    def check_reached(self, updates: int, start: int = 0) -> None:
        """Raise for an average that a run of the updates start + 1 … `updates` never has, with what its windows are
        filled with before; so a first replacement falls within the run, too."""
        before = self.prefilled
        if before and (late := next((step for step in before if not 0 < step < start), None)) is not None:
            raise UsageError(f"averaging.prefill: update {late} is not before training.start={start}; leave it out")
        if before and self.placement == "disk":
            raise UsageError("averaging.prefill needs snapshots in memory; choose averaging.placement=device or host")
        for name, average in self.named.items():
            cadence, held = average.cadence, 0
            if before:
                held = sum(map(cadence.due, (*before, start) if isinstance(average, Window) else (start,)))
            first: int | None = start if held >= average.needed else None
            if held < average.needed:
                following = cadence.after(start)
                until = None if following is None else following + (average.needed - held - 1) * cadence.every
                first = until if until is not None and cadence.due(until) else None
            if first is None or first > updates:
                raise UsageError(
                    f"averaging{f'.averages.{name}' if self.averages else ''}: {name!r} ({average}) is first ready at "
                    f"update {first}, after training.updates={updates}; lower its every, start or window, "
                    "set min_window, or train longer"
                )

    @property
    def replacing(self) -> dict[str, Any]:
        """The settings of a replacement, as WeightAverager takes them."""
        names = ("replace_with", "after_replace", "replace_every", "replace_until", "strength", "moments")
        return {name: getattr(self, name) for name in names}

    @property
    def short(self) -> dict[str, Any]:
        """The settings of the one window, as far as they are given."""
        names = ("every", "window", "start", "stop", "coefficients", "min_window")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    @property
    def named(self) -> dict[str, Average]:
        """{name: average}; empty with mode none."""
        if self.mode == "none":
            return {}
        if not self.averages:
            settings = dict(self.short)
            return {"lawa": Window(settings.pop("window", 10), **settings)}
        result: dict[str, Average] = {}
        for name, spec in self.averages.items():
            if spec is not None:  # an arm drops one of the base's averages by naming it with nothing
                result[name] = _average(name, spec, result)
        return named_averages(result, {})


def _average(name: str, spec: Any, before: Mapping[str, Average]) -> Average:
    """One entry of averaging.averages; the key that names the kind carries its main setting."""
    kinds = ("window", "ema", "running_mean")
    if not isinstance(spec, Mapping) or len([kind for kind in kinds if kind in spec]) != 1:
        raise UsageError(f"averaging.averages.{name}={spec!r} must have exactly one of {', '.join(kinds)}")
    settings = dict(spec)
    try:
        if "window" in settings:
            return Window(settings.pop("window"), **settings)
        if "running_mean" in settings:
            return RunningMean(start=settings.pop("running_mean"), **settings)
        beta = settings.pop("ema")
        if not isinstance(beta, Mapping):
            return EMA(float(beta) if isinstance(beta, str) else beta, **settings)
        window = before.get(beta.get("matches", ""))
        if not isinstance(window, Window) or len(beta) != 1:
            raise UsageError(f"averaging.averages.{name}: matches must name a window given before it")
        return EMA.matched(window, **settings)
    except TypeError as unknown:
        raise UsageError(f"averaging.averages.{name}: {str(unknown).partition(') ')[2] or unknown}") from None
    except UsageError:
        raise
    except ValueError as impossible:
        raise UsageError(f"averaging.averages.{name}: {impossible}") from None
