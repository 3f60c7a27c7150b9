"""An output read back and compared with its inputs in float64, block by block, as far as it is sampled. No torch.

Nothing of the engine is used here but the plan's words: offsets come from the output's own headers, and values are
summed by other means. What may differ is what rounding may: of the sums (k additions and a multiplication a term), of
the coefficients, and of the output.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lawa.checkpoints.catalog import ITEMSIZE, Stored
from lawa.checkpoints.formats.safetensors import read_header
from lawa.errors import LawaError
from lawa.offline.bytes_at import read_all
from lawa.offline.plan import Mean, Placed, Plan

_BLOCK = 1 << 15  # elements
# Of each dtype: the unit roundoff 2^−p, half the smallest denormal, and the largest value.
_ROUNDING = {
    "float64": (2.0**-53, 0.0, float(np.finfo(np.float64).max)),
    "float32": (2.0**-24, 2.0**-150, float(np.finfo(np.float32).max)),
    "float16": (2.0**-11, 2.0**-25, 65504.0),
    "bfloat16": (2.0**-8, 2.0**-134, 255 * 2.0**120),
}


@dataclass(frozen=True)
class Report:
    """
    tensors, elements  how much was compared
    worst              the largest error found, where 1 is the most that rounding explains
    tensor             in which it was
    """

    tensors: int
    elements: int
    worst: float
    tensor: str

    def __str__(self) -> str:
        return (
            f"{self.elements} elements of {self.tensors} tensors were read back; the largest error is {self.worst:.2f} "
            f"of what rounding allows ({self.tensor})"
        )


def verify(plan: Plan, mean: Mean, directory: Path, *, samples: int = 256, seed: int = 0) -> Report:
    """Compare the output `directory` of `mean` with its inputs.

    samples  blocks of up to 32,768 elements: each tensor has one (where there are more tensors, those that are drawn),
             and the others go where the elements are
    seed     of what is drawn

    Raises LawaError for the first tensor that is missing, of another dtype or shape, or off.
    """
    written = _written(plan, directory)
    compared, elements, worst, tensor = set(), 0, -1.0, ""
    for placed, start, stop in _sampled(plan.tensors, samples, random.Random(seed)):
        name = placed.row.name
        if placed.row.averaged:
            error = _error(plan, mean, placed, written[name], start, stop)
            off = int(np.argmax(error))
            if error[off] > 1:
                _off(directory, name, start + off, f"is off by {error[off]:.3g} times what rounding explains")
            if error[off] > worst:
                worst, tensor = float(error[off]), name
        else:
            source = _input(placed, mean.inputs[-1])
            if _bytes(written[name], start, stop) != _bytes(source, start, stop):
                _off(directory, name, start, f"has other bytes than in {plan.catalogs[mean.inputs[-1]].label}")
        compared.add(name)
        elements += stop - start
    return Report(len(compared), elements, max(worst, 0.0), tensor)


def _written(plan: Plan, directory: Path) -> dict[str, Stored]:
    """The output's tensors by its own headers, in the files, dtypes and shapes of the plan."""
    found = {file.name: read_header(directory / file.name).tensors for file in plan.files}
    for placed in plan.tensors:
        name, at = placed.row.name, found[placed.file].get(placed.row.name)
        if at is None:
            raise LawaError(f"{directory / placed.file} lacks the tensor {name!r}; average again")
        if (at.dtype, at.shape) != (placed.dtype, placed.row.newest.shape):
            raise LawaError(
                f"tensor {name!r} of {directory} is {at.dtype} {at.shape}, and was to be {placed.dtype} "
                f"{placed.row.newest.shape}; average again"
            )
    return {placed.row.name: found[placed.file][placed.row.name] for placed in plan.tensors}


def _sampled(tensors: Sequence[Placed], samples: int, draw: random.Random) -> Iterator[tuple[Placed, int, int]]:
    """Stretches of elements, in the order of the tensors."""
    filled = [index for index, placed in enumerate(tensors) if placed.row.numel]
    chosen = sorted(draw.sample(filled, min(samples, len(filled))))
    sizes = [tensors[index].row.numel for index in chosen]
    more = draw.choices(chosen, sizes, k=samples - len(chosen)) if chosen else []
    for index in sorted(chosen + more):
        blocks = -(-tensors[index].row.numel // _BLOCK)
        start = draw.randrange(blocks) * _BLOCK
        yield tensors[index], start, min(start + _BLOCK, tensors[index].row.numel)


def _error(plan: Plan, mean: Mean, placed: Placed, written: Stored, start: int, stop: int) -> np.ndarray:
    """|output − Σ c_i θ_i| in units of its bound, by element; inf where only one of them is finite."""
    k = len(mean.inputs)
    c = mean.coefficients or (1 / k,) * k
    inputs = [_input(placed, index) for index in mean.inputs]
    wide = plan.accumulate == "float64" or any(at.dtype == "float64" for at in inputs)
    sums = "float64" if wide else "float32"
    exact, sizes, largest = (np.zeros(stop - start) for _ in range(3))
    with np.errstate(all="ignore"):
        for c_i, at in zip(c, inputs, strict=True):
            theta = _values(at, start, stop)
            exact += c_i * theta
            sizes += np.abs(c_i * theta)
            largest += np.abs(theta)
        bound = _bound(exact, sizes, largest, k, sums, placed.dtype)
        got = _values(written, start, stop)
        error = np.abs(got - exact)
        finite = np.where(error == 0, 0.0, error / bound)
        overflown = (largest > _largest(sums)) | (np.abs(exact) + bound > _largest(placed.dtype))
    right = ~np.isfinite(exact) | overflown
    return np.where(np.isfinite(got), np.where(np.isfinite(exact), finite, np.inf), np.where(right, 0.0, np.inf))


def _bound(exact: np.ndarray, sizes: np.ndarray, largest: np.ndarray, k: int, sums: str, out: str) -> np.ndarray:
    """How far an output may lie from `exact`.

    sizes, largest  Σ|c_i θ_i| and Σ|θ_i|

    The standard bound γ_n Σ|c_i θ_i| (Higham, Accuracy and Stability, 3.1) with n = k + 2 roundings, one of them the
    coefficient's; as much for the float64 that is compared with; what underflows of products and coefficients; then
    the output's rounding, of fp64 sums to 16 bits by way of fp32.
    """
    unit, tiny, _ = _ROUNDING[sums]
    n = (k + 2) * (unit + 2.0**-53)
    bound = n / (1 - n) * sizes + (k + 1) * tiny + tiny * largest
    steps = ("float32", out) if sums == "float64" and ITEMSIZE[out] == 2 else (out,)
    for unit, tiny, _ in (_ROUNDING[step] for step in steps if step != sums):
        bound = bound + unit * (np.abs(exact) + bound) + tiny
    return bound


def _largest(dtype: str) -> float:
    """The size from which on a value may be infinite: a little early, since what is compared with it is rounded."""
    return _ROUNDING[dtype][2] * (1 - 2.0**-20)


def _input(placed: Placed, index: int) -> Stored:
    stored = placed.row.stored[index]
    assert stored is not None  # match() and make_plan() have seen to it
    return stored


def _values(stored: Stored, start: int, stop: int) -> np.ndarray:
    """Elements start … stop as float64."""
    raw = _bytes(stored, start, stop)
    if stored.dtype == "bfloat16":  # the upper half of an fp32
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return np.frombuffer(raw, np.dtype(stored.dtype).newbyteorder("<")).astype(np.float64)


def _bytes(stored: Stored, start: int, stop: int) -> bytearray:
    size = ITEMSIZE[stored.dtype]
    with stored.file.open("rb", buffering=0) as opened:
        try:
            return read_all(opened.fileno(), (stop - start) * size, stored.offset + start * size)
        except OSError as failed:
            raise LawaError(f"{stored.file} cannot be read ({failed.strerror})") from None


def _off(directory: Path, name: str, element: int, how: str) -> None:
    raise LawaError(f"tensor {name!r} of {directory} {how}, at element {element}; do not use it: average again")
