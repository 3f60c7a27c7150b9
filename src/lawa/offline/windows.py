"""The means that are asked for: of all checkpoints, of the latest window, or of every window along them. No torch.

    one            OUTPUT
    several        OUTPUT/window3, OUTPUT/window5; OUTPUT/uniform, OUTPUT/linear; OUTPUT/window3-uniform, …; of
                   several lists of numbers OUTPUT/explicit1, OUTPUT/explicit2
    rolling        OUTPUT/step00001000, …; of several OUTPUT/window3/step00001000, …

Window k with spacing s takes every s-th checkpoint and spans s(k − 1) + 1 of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
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
        if self.sizes is not None:
            _check_counts("window", self.sizes, self.sizes)
        _check_counts("spacing", self.spacing, [self.spacing])
        if self.sizes is None and (self.rolling or self.spacing > 1):
            raise UsageError("a window's size is missing: give --window K")
        for name, given in (("window", self.sizes or ()), ("coefficients", self.families)):
            if again := next((one for at, one in enumerate(given) if one in given[:at]), None):
                raise UsageError(f"{name}={again!r} was given twice")

    @property
    def variants(self) -> list[tuple[str, int | None, Spec]]:
        """(name, size, family) of each series of means; named by what distinguishes them, "" for the only one."""
        sizes: Sequence[int | None] = self.sizes or (None,)
        many_sizes, families = len(sizes) > 1, _family_names(self.families)
        return [
            ("-".join([*([f"window{size}"] if many_sizes else []), *([name] if name else [])]), size, one)
            for size in sizes
            for name, one in zip(families, self.families, strict=True)
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


def _family_names(families: Sequence[Spec]) -> list[str]:
    """Nothing for the only one; those of the same name (lists of numbers) are numbered: explicit1, explicit2."""
    if len(families) == 1:
        return [""]
    names = [family_name(one) for one in families]
    return [f"{name}{names[: at + 1].count(name)}" if names.count(name) > 1 else name for at, name in enumerate(names)]


def _short(value: Any) -> str:
    if isinstance(value, int | float):
        return f"{value:g}"
    return f"-{value}" if isinstance(value, str) else "-values"


def _check_counts(name: str, given: object, each: Sequence[Any]) -> None:
    if not each or not all(isinstance(one, Integral) and one >= 1 for one in each):  # type: ignore[operator]
        raise UsageError(f"{name}={given!r} must be whole numbers of checkpoints, and at least 1")


def _checked(family: Spec, k: int) -> tuple[float, ...]:
    try:
        return coefficients(family, k)
    except LawaError as wrong:
        raise UsageError(str(wrong)) from None


def _floats(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]
