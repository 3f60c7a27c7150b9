"""The means that are asked for: of all checkpoints, of the latest window, or of every window along them. No torch.

    one            OUTPUT
    several        OUTPUT/window3, OUTPUT/window5; OUTPUT/uniform, OUTPUT/linear; OUTPUT/window3-uniform, …
    rolling        OUTPUT/step00001000, …; of several OUTPUT/window3/step00001000, …

Window k with spacing s takes every s-th checkpoint and spans s(k − 1) + 1 of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

from lawa.averaging.coefficients import Spec, coefficients, is_uniform
from lawa.checkpoints.find import step_directory
from lawa.checkpoints.select import Found
from lawa.errors import LawaError, UsageError
from lawa.offline.plan import Mean

Families = Spec | Sequence[Spec]


@dataclass(frozen=True, kw_only=True)
class Windows:
    """
    sizes     k, several, or None: all checkpoints as one
    spacing   s, in checkpoints
    rolling   one mean for every checkpoint at which a window is whole, or else the latest alone
    families  one way to weight them, or several
    """

    sizes: Sequence[int] | None = None
    spacing: int = 1
    rolling: bool = False
    families: Sequence[Spec] = ("uniform",)

    def __post_init__(self) -> None:
        if any(size < 1 for size in self.sizes or ()) or self.spacing < 1:
            raise UsageError(f"window={self.sizes}, spacing={self.spacing}: both must be at least 1")
        if self.sizes is None and (self.rolling or self.spacing > 1):
            raise UsageError("a window's size is missing: give --window K")
        names = [name for name, _, _ in self.variants]
        if again := {name for name in names if names.count(name) > 1}:
            raise UsageError(f"window or coefficients {', '.join(again) or names[0]} were given twice")

    @property
    def variants(self) -> list[tuple[str, int | None, Spec]]:
        """(name, size, family) of each series of means; named by what distinguishes them, "" for the only one."""
        sizes: Sequence[int | None] = self.sizes or (None,)
        many_sizes, many = len(sizes) > 1, len(self.families) > 1
        return [
            ("-".join([*([f"window{size}"] if many_sizes else []), *([family_name(one)] if many else [])]), size, one)
            for size in sizes
            for one in self.families
        ]

    def means(self, found: Sequence[Found]) -> tuple[list[Mean], list[str]]:
        """Over `found`, oldest first; and a note for what there is no whole window for.

        Raises UsageError where no mean is left, and for coefficients that cannot be had.
        """
        means: list[Mean] = []
        notes: dict[str, None] = {}
        for name, size, family in self.variants:
            k = size or len(found)
            span = self.spacing * (k - 1) + 1
            if span > len(found):
                raise UsageError(
                    f"a window of {k}, spacing {self.spacing}, spans {span} checkpoints, and there are {len(found)}"
                )
            weights = None if is_uniform(family) else _checked(family, k)
            for end in range(span - 1 if self.rolling else len(found) - 1, len(found)):
                inputs = tuple(range(end - span + 1, end + 1, self.spacing))
                means.append(Mean(self._name(name, found[end]), inputs, weights))
            if self.rolling and span > 1:
                notes[f"no whole window of {k} ends at the first {span - 1} of the {len(found)} steps; skipped"] = None
        return means, list(notes)

    def _name(self, variant: str, latest: Found) -> str:
        if not self.rolling:
            return variant
        assert latest.step is not None  # select has seen to it
        return step_directory(variant, latest.step).as_posix()


def used(found: Sequence[Found], means: Sequence[Mean]) -> tuple[list[Found], list[Mean]]:
    """Without the checkpoints that no mean has."""
    needed = sorted({index for mean in means for index in mean.inputs})
    at = {index: position for position, index in enumerate(needed)}
    moved = [replace(mean, inputs=tuple(at[index] for index in mean.inputs)) for mean in means]
    return [found[index] for index in needed], moved


def families_of(given: Families) -> tuple[Spec, ...]:
    """One family, or each of several."""
    if isinstance(given, str | Mapping) or all(isinstance(one, Real) for one in given):
        return (given,)  # type: ignore[return-value]
    return tuple(given)  # type: ignore[arg-type]


def parse_family(text: str) -> Spec:
    """As the command line has it: uniform, linear, one_minus_sqrt, ema:0.9, decay:cosine, decay:1,0.5,0 or 0.2,0.8."""
    name, colon, value = text.partition(":")
    try:
        if name == "ema" and colon:
            return {"ema": float(value)}
        if name == "decay" and colon:
            return {"decay": _floats(value) if "," in value else value}
        return _floats(text) if "," in text else text
    except ValueError:
        raise UsageError(
            f"--coefficients {text} is unknown; write uniform, linear, one_minus_sqrt, ema:0.9, decay:cosine or numbers"
        ) from None


def family_name(family: Spec) -> str:
    """As a directory's name."""
    if isinstance(family, str):
        return family
    if isinstance(family, Mapping):
        [(kind, value)] = family.items() if len(family) == 1 else [("unknown", family)]
        return f"{kind}{_short(value)}"
    return "explicit"


def _short(value: Any) -> str:
    if isinstance(value, int | float):
        return f"{value:g}"
    return f"-{value}" if isinstance(value, str) else "-values"


def _checked(family: Spec, k: int) -> tuple[float, ...]:
    try:
        return coefficients(family, k)
    except LawaError as wrong:
        raise UsageError(str(wrong)) from None


def _floats(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]
