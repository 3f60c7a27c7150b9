"""Slow, literal twins of the arithmetic: one formula a function, nothing imported from lawa.

Arrays are numpy's. A twin in fp32 does the same IEEE operations in the same order, so its bits must be equal;
the exact one works in float64 and comes with a bound on what fp32 may lose.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction

import numpy as np
import torch

# ---- bits


def array(tensor: torch.Tensor) -> np.ndarray:
    """A tensor's values: fp64 stays fp64, everything narrower becomes fp32, which holds all its values."""
    wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    return tensor.detach().to(wide).cpu().numpy().copy()


def rounded(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """`values` rounded to `dtype`, to nearest and ties to even, and given back as `array` gives it.

    From fp32 that is one rounding. From fp64 torch goes to the 16-bit types by way of fp32, on every device.
    """
    with np.errstate(all="ignore"):
        if dtype.itemsize == 2:
            values = values.astype(np.float32)
        if dtype == torch.bfloat16:
            return np.array([_bfloat16(value) for value in values.ravel()], np.float32).reshape(values.shape)
        if dtype == torch.float16:
            return values.astype(np.float16).astype(np.float32)
        return values.astype({torch.float32: np.float32, torch.float64: np.float64}[dtype])


def _bfloat16(value: np.floating) -> float:
    """The upper half of an fp32's bits, rounded."""
    if np.isnan(value):
        return float("nan")
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    upper, lower = bits >> 16, bits & 0xFFFF
    if lower > 0x8000 or (lower == 0x8000 and upper & 1):
        upper += 1
    return struct.unpack("<f", struct.pack("<I", (upper & 0xFFFF) << 16))[0]


def same_bits(left: torch.Tensor | np.ndarray, right: torch.Tensor | np.ndarray) -> bool:
    """Equal bits, −0.0 apart from +0.0; any nan equals any nan, since a payload means nothing."""
    a, b = (array(x) if isinstance(x, torch.Tensor) else np.asarray(x) for x in (left, right))
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return bool(np.all((np.isnan(a) & np.isnan(b)) | ((a == b) & (np.signbit(a) == np.signbit(b)))))


# ---- means


def uniform(snapshots: Sequence[np.ndarray], dtype: type = np.float32) -> np.ndarray:
    """a ← 0; a ← a + θ_i, oldest first; a ← a · dtype(1/k), once."""
    with np.errstate(all="ignore"):
        a = np.zeros(snapshots[0].shape, dtype)
        for theta in snapshots:
            a = a + theta.astype(dtype)
        return a * dtype(1 / len(snapshots))


def weighted(snapshots: Sequence[np.ndarray], c: Sequence[float], dtype: type = np.float32) -> np.ndarray:
    """a ← 0; p ← dtype(c_i · θ_i); a ← a + p, oldest first."""
    with np.errstate(all="ignore"):
        a = np.zeros(snapshots[0].shape, dtype)
        for theta, c_i in zip(snapshots, c, strict=True):
            p = dtype(c_i) * theta.astype(dtype)
            a = a + p
        return a


def mean(snapshots: Sequence[np.ndarray], c: Sequence[float] | None = None, dtype: type = np.float32) -> np.ndarray:
    return uniform(snapshots, dtype) if c is None else weighted(snapshots, c, dtype)


def exact(snapshots: Sequence[np.ndarray], c: Sequence[float] | None = None) -> np.ndarray:
    """Σ c_i θ_i in float64."""
    c = c or [1 / len(snapshots)] * len(snapshots)
    return np.sum([c_i * theta.astype(np.float64) for theta, c_i in zip(snapshots, c, strict=True)], axis=0)


def error_bound(snapshots: Sequence[np.ndarray], c: Sequence[float] | None = None) -> np.ndarray:
    """How far k additions and one multiplication a term, each rounded to fp32, may end from `exact`.

    The standard bound γ_n Σ|c_i θ_i| with n = k + 2 roundings (one more for the coefficient itself), half the
    smallest denormal for each product that underflows, and float64's own error, which is far below both.
    """
    k = len(snapshots)
    c = c or [1 / k] * k
    n = (k + 2) * 2.0**-24
    sizes = np.sum([abs(c_i) * np.abs(theta.astype(np.float64)) for theta, c_i in zip(snapshots, c, strict=True)], 0)
    return n / (1 - n) * sizes + (k + 1) * 2.0**-150


def ema(readings: Sequence[np.ndarray], beta: float, dtype: type = np.float32) -> np.ndarray:
    """e ← θ_1; e ← e + dtype(1 − β) · (θ − e), each operation rounded once."""
    with np.errstate(all="ignore"):
        e = readings[0].astype(dtype)
        for theta in readings[1:]:
            difference = theta.astype(dtype) - e
            step = dtype(1 - beta) * difference
            e = e + step
        return e


def exact_ema(readings: Sequence[np.ndarray], beta: float) -> np.ndarray:
    """β^(n−1) θ_1 + Σ (1 − β) β^(n−j) θ_j in float64: the sum that the recursion stands for."""
    n = len(readings)
    terms = [beta ** (n - 1) * readings[0].astype(np.float64)]
    terms += [(1 - beta) * beta ** (n - j) * readings[j - 1].astype(np.float64) for j in range(2, n + 1)]
    return np.sum(terms, axis=0)


def mean_age(weights: Sequence[float], ages: Sequence[float]) -> float:
    """Σ c_i · age_i, in whatever unit the ages have."""
    return sum(c_i * age for c_i, age in zip(weights, ages, strict=True))


# ---- coefficients


def decay(w: Callable[[Fraction], float], k: int) -> list[float]:
    """c_i = w(i/k) − w((i+1)/k)."""
    return [float(w(Fraction(i, k)) - w(Fraction(i + 1, k))) for i in range(k)]


# ---- cadence: every update is enumerated


def captures(every: int, start: int, stop: int | None, until: int) -> list[int]:
    """The updates t = 1 … until at which a capture falls."""
    found = []
    for t in range(1, until + 1):
        if t < start:
            continue
        if stop is not None and t > stop:
            continue
        if t % every == 0:
            found.append(t)
    return found


def window_after(every: int, start: int, stop: int | None, size: int, t: int) -> list[int]:
    """What a window that was never cleared holds after update t, oldest first."""
    return captures(every, start, stop, t)[-size:]


def replacements(
    captured: Iterable[int],
    until: int,
    *,
    window: int | None,
    min_window: int,
    replace_every: int,
    replace_until: int | None = None,
    clear: bool = False,
) -> list[tuple[int, tuple[int, ...]]]:
    """(update, the snapshots averaged) of every replacement: update by update, counting by hand.

    window None is a running average: it holds all it has read.
    """
    due = set(captured)
    held: list[int] = []
    waited: int | None = None  # updates since the last replacement
    found = []
    for t in range(1, until + 1):
        if waited is not None:
            waited += 1
        if t not in due:
            continue
        held.append(t)
        if window is not None and len(held) > window:
            held.pop(0)
        if len(held) < min_window:
            continue
        if waited is not None and waited < replace_every:
            continue
        if replace_until is not None and t > replace_until:
            continue
        found.append((t, tuple(held)))
        waited = 0
        if clear:
            held = []
    return found


def most_snapshots(windows: Sequence[tuple[int, int, int, int | None]], until: int) -> int:
    """The most different snapshots that windows of (size, every, start, stop) hold together, up to `until`."""
    captured = [captures(every, start, stop, until) for _, every, start, stop in windows]
    most = 0
    for t in range(1, until + 1):
        together = set()
        for (size, *_), steps in zip(windows, captured, strict=True):
            together |= set([step for step in steps if step <= t][-size:])
        most = max(most, len(together))
    return most


# ---- Adam


def adam_step(
    theta: np.ndarray, g: np.ndarray, m: np.ndarray, v: np.ndarray, step: int, *,
    lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """(θ, m, v) after one Adam step without weight decay, in float64; `step` is 1 at an optimizer's first."""
    m = betas[0] * m + (1 - betas[0]) * g
    v = betas[1] * v + (1 - betas[1]) * g * g
    m_hat = m / (1 - betas[0] ** step)
    v_hat = v / (1 - betas[1] ** step)
    return theta - lr * m_hat / (np.sqrt(v_hat) + eps), m, v
