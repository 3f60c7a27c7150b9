"""Coefficients c_i of an average Σ c_i θ_i, i = 0 … k−1, oldest first, Σ c_i = 1.

Written as:

    "uniform"            1/k
    "linear"             c_i ∝ i + 1
    "one_minus_sqrt"     c_i = √((i+1)/k) − √(i/k)
    {"ema": β}           c_i ∝ β^(k−1−i), β per snapshot
    {"decay": w}         c_i = w(i/k) − w((i+1)/k) for a monotone w from w(0) = 1 to w(1) = 0: a function, a
                         name ("linear", "cosine", "sqrt") or the k+1 values w_0 … w_k. On a constant learning
                         rate it emulates decaying it by w (WSM, arXiv 2507.17634). A linear w gives "uniform".
    [c_0, …, c_{k−1}]    as given

No torch here: a configuration can be checked before anything heavy is imported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from lawa.errors import LawaError

Spec = str | Mapping[str, Any] | Sequence[float]

DECAYS: dict[str, Callable[[float], float]] = {
    "linear": lambda x: 1 - x,
    "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
    "sqrt": lambda x: 1 - math.sqrt(x),
}
_FORMS = "'uniform', 'linear', 'one_minus_sqrt', {'ema': beta}, {'decay': w} or a list of numbers"


def coefficients(spec: Spec, k: int) -> tuple[float, ...]:
    """The k coefficients of `spec`, oldest first, as Python floats that sum to 1.

    >>> coefficients("linear", 3)
    (0.16666666666666666, 0.3333333333333333, 0.5)
    """
    if isinstance(spec, str):
        if spec == "uniform":
            return (1 / k,) * k
        if spec == "linear":
            return tuple((i + 1) * 2 / (k * (k + 1)) for i in range(k))
        if spec == "one_minus_sqrt":
            return tuple(math.sqrt((i + 1) / k) - math.sqrt(i / k) for i in range(k))
        raise LawaError(f"coefficients={spec!r} is unknown; write {_FORMS}")
    if isinstance(spec, Mapping):
        if len(spec) == 1 and "ema" in spec:
            return _ema(spec["ema"], k)
        if len(spec) == 1 and "decay" in spec:
            return _decay(spec["decay"], k)
        raise LawaError(f"coefficients={dict(spec)!r} is unknown; write {_FORMS}")
    return _explicit(spec, k)


def is_uniform(spec: Spec) -> bool:
    """Whether the average is a sum scaled once, which has bits of its own (see mean)."""
    return spec == "uniform"


def fixed_size(spec: Spec) -> int | None:
    """The only k that `spec` is defined for, or None when it is defined for every k."""
    if isinstance(spec, str):
        return None
    if isinstance(spec, Mapping):
        w = spec.get("decay")
        return len(w) - 1 if isinstance(w, Sequence) and not isinstance(w, str) else None
    return len(spec)


def _ema(beta: float, k: int) -> tuple[float, ...]:
    if not (isinstance(beta, (int, float)) and 0 < beta < 1):
        raise LawaError(f"coefficients={{'ema': {beta!r}}}: beta lies strictly between 0 and 1")
    powers = [beta ** (k - 1 - i) for i in range(k)]
    return tuple(power / math.fsum(powers) for power in powers)


def _decay(w: Callable[[float], float] | str | Sequence[float], k: int) -> tuple[float, ...]:
    if isinstance(w, str):
        if w not in DECAYS:
            raise LawaError(f"coefficients={{'decay': {w!r}}} is unknown; the named decays are {', '.join(DECAYS)}")
        w = DECAYS[w]
    if callable(w):
        values = [float(w(i / k)) for i in range(k + 1)]
    else:
        values = list(_numbers(w, f"{{'decay': {w!r}}}"))
        if len(values) != k + 1:
            raise LawaError(f"a decay given as values needs k + 1 = {k + 1} of them (w_0 … w_k), not {len(values)}")
    rising = any(later > earlier for earlier, later in pairwise(values))
    if not all(map(math.isfinite, values)) or abs(values[0] - 1) > 1e-9 or abs(values[-1]) > 1e-9 or rising:
        raise LawaError(f"a decay falls from w_0 = 1 to w_k = 0 without rising; this one is {values}")
    return tuple(earlier - later for earlier, later in pairwise(values))


def _explicit(values: Sequence[float], k: int) -> tuple[float, ...]:
    given = _numbers(values, repr(values))
    if len(given) != k:
        raise LawaError(f"{len(given)} coefficients were given for {k} snapshots; give one for each, oldest first")
    if not all(map(math.isfinite, given)) or abs(math.fsum(given) - 1) > 1e-6:
        raise LawaError(f"coefficients={list(given)} sum to {sum(given)}; they must be finite and sum to 1")
    return given


def _numbers(values: Sequence[float], text: str) -> tuple[float, ...]:
    try:
        return tuple(float(value) for value in values)
    except (TypeError, ValueError):
        raise LawaError(f"coefficients={text} is unknown; write {_FORMS}") from None
