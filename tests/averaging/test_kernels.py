"""The compiled step of a running average: the twins' bits, and torch's, wherever the readings lie."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import twins
from averaging.test_mean import EDGES, draws, floats32, threads
from lawa.averaging import kernels
from lawa.averaging.mean import ema_into, sum_into

pytestmark = pytest.mark.skipif(kernels._library is None, reason="no C compiler here")

SERVED = [torch.float32, torch.bfloat16]
BETAS = [None, 0.5, 0.9, 0.9999]  # None: the sum
GAP = 7.0
TAILS = [0, 1, 3, 7, 8, 15, 16, 17, 31, 33, 63, 65, 0, 1001, 4096]  # elements; vectors have 4, 8 or 16


def lay(sizes: Sequence[int]) -> tuple[list[int], int]:
    """(offsets, elements) of a state whose readings begin on cache lines, as a group's do."""
    offsets, n = [], 0
    for size in sizes:
        offsets.append(n)
        n += -(-size // 16) * 16
    return offsets, n


def follow(readings: Sequence[Sequence[torch.Tensor]], beta: float | None) -> list[torch.Tensor]:
    """The state after reading each row of tensors in turn, compiled and by torch: the bits must be the same."""
    offsets, n = lay([theta.numel() for theta in readings[0]])
    states = [torch.full((n,), GAP) for _ in range(2)]
    views = [
        [state[at : at + theta.numel()] for at, theta in zip(offsets, readings[0], strict=True)] for state in states
    ]
    live = [theta.clone() for theta in readings[0]]
    table = kernels.Table(states[0], offsets, live)
    for view in views[0] + views[1]:
        view.zero_()
    for number, row in enumerate(readings):
        for theta, now in zip(live, row, strict=True):
            theta.copy_(now)  # in place, as an optimizer's step: the table reads it anew
        if beta is None:
            table.sum()
            for view, theta in zip(views[1], row, strict=True):
                sum_into(view, theta.float())
        elif number == 0:
            for mine, its, theta in zip(*views, row, strict=True):
                mine.copy_(theta)
                its.copy_(theta)
        else:
            table.ema(beta)
            for view, theta in zip(views[1], row, strict=True):
                ema_into(view, theta.float().clone(), beta)
        assert all(map(torch.equal, map(bits, live), map(bits, row))), "readings are only read"
    assert twins.same_bits(*states)
    return views[0]


def bits(theta: torch.Tensor) -> torch.Tensor:
    return theta.view({2: torch.int16, 4: torch.int32}[theta.element_size()])


def expected(rows: Sequence[torch.Tensor], beta: float | None) -> np.ndarray:
    arrays = [twins.array(theta) for theta in rows]
    if beta is not None:
        return twins.ema(arrays, beta)
    with np.errstate(all="ignore"):
        total = np.zeros_like(arrays[0])
        for theta in arrays:
            total = total + theta
        return total


@pytest.mark.parametrize("dtype", SERVED, ids=str)
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_the_twins_bits_on_any_number_of_threads(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, beta: float | None, count: int
) -> None:
    monkeypatch.setattr(kernels, "_PER_THREAD", 50)
    rows = [[draws(1, size, dtype, seed=100 * t + size)[0] for size in TAILS] for t in range(6)]
    with threads(count):
        found = follow(rows, beta)
    for number, state in enumerate(found):
        assert twins.same_bits(state, expected([row[number] for row in rows], beta)), TAILS[number]


@pytest.mark.parametrize("dtype", SERVED, ids=str)
@pytest.mark.parametrize("beta", BETAS)
def test_threads_of_the_size_that_has_them(dtype: torch.dtype, beta: float | None) -> None:
    rows = [draws(2, 1_000_003, dtype, seed=t) for t in range(3)]
    with threads(3):
        found = follow(rows, beta)
    for number, state in enumerate(found):
        assert twins.same_bits(state, expected([row[number] for row in rows], beta))


@pytest.mark.parametrize("beta", [0.9, 0.9999])
def test_the_draws_would_show_a_fused_multiply_add(beta: float) -> None:
    """Otherwise a compiler that contracts e + share · d would pass."""
    e, theta = (twins.array(one) for one in draws(2, 4096))
    share, difference = np.float32(1 - beta), theta - e
    fused = (e.astype(np.float64) + share.astype(np.float64) * difference).astype(np.float32)
    assert not twins.same_bits(twins.ema([e, theta], beta), fused)


@pytest.mark.parametrize("dtype", SERVED, ids=str)
@pytest.mark.parametrize("beta", [None, 0.3, 0.5, 0.9999])
def test_corners_every_edge_with_every_other(dtype: torch.dtype, beta: float | None) -> None:
    """±0, denormals, overflow in θ − e and in the sum, inf − inf, nan: as IEEE has them."""
    grids = torch.meshgrid(*[torch.tensor(EDGES, dtype=torch.float64)] * 3, indexing="ij")
    rows = [grid.reshape(-1).to(dtype) for grid in grids]
    assert twins.same_bits(follow([[row] for row in rows], beta)[0], expected(rows, beta))


def test_ties_go_to_even() -> None:
    ulp = 2.0**-23

    def last(values: Sequence[float], beta: float | None) -> float:
        return follow([[torch.full((5,), value)] for value in values], beta)[0][-1].item()

    assert last([1.0, 1.0 + ulp], 0.5) == 1.0
    assert last([1.0 + ulp, 1.0 + 2 * ulp], 0.5) == 1.0 + 2 * ulp
    assert last([2.0**24, 1.0], None) == 2.0**24
    assert last([2.0**24 + 2, 1.0], None) == 2.0**24 + 4


@settings(deadline=None)
@given(st.data(), st.integers(1, 40), st.integers(2, 4), st.sampled_from(SERVED))
def test_the_twins_bits_for_any_values(data: st.DataObject, n: int, steps: int, dtype: torch.dtype) -> None:
    arrays = data.draw(hnp.arrays(np.float32, (steps, n), elements=floats32))
    beta = data.draw(st.one_of(st.none(), st.floats(0, 1, exclude_min=True, exclude_max=True)))
    rows = [torch.from_numpy(row).to(dtype) for row in arrays]
    assert twins.same_bits(follow([[row] for row in rows], beta)[0], expected(rows, beta))


@pytest.mark.parametrize("dtype", SERVED, ids=str)
@pytest.mark.parametrize("beta", [None, 0.9])
def test_views_at_any_address_and_what_lies_between_them(dtype: torch.dtype, beta: float | None) -> None:
    """Readings that begin in the middle of a vector; of the state only their own elements are written."""
    flat = draws(1, 300, dtype)[0]
    live = [flat[1:38], flat[41:42], flat[45:45], flat[101:299]]
    offsets = [3, 50, 60, 77]
    state = torch.full((400,), GAP)
    table = kernels.Table(state, offsets, live)
    table.sum() if beta is None else table.ema(beta)
    want = np.full(400, GAP, np.float32)
    for at, theta in zip(offsets, live, strict=True):
        gap = want[at : at + theta.numel()]
        values = [gap, twins.array(theta)]
        want[at : at + theta.numel()] = values[0] + values[1] if beta is None else twins.ema(values, beta)
    assert twins.same_bits(state, want)


def test_a_library_built_from_an_older_source_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda path: SimpleNamespace(lawa_mean=SimpleNamespace()))
    assert kernels._load() is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("threads", [1, 3])
def test_a_copy_is_a_copy_and_leaves_the_gaps(
    dtype: torch.dtype, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "_PER_THREAD", 16)
    monkeypatch.setattr(kernels, "_LARGE", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(5000, generator=generator, dtype=torch.float64).to(dtype)
    tensors = [whole[7:7], whole[3:4].view(()), whole[1:1004], whole[1500:4000].view(50, 50), whole[11:27]]
    offsets = [0, 32, 64, 1088, 3648]
    flat = torch.full((3680,), -1.0, dtype=dtype)
    assert kernels.copies(tensors, flat)
    kernels.copy_into(flat, offsets, tensors)
    want = torch.full_like(flat, -1.0)
    for offset, tensor in zip(offsets, tensors, strict=True):
        want[offset : offset + tensor.numel()] = tensor.flatten()
    assert torch.equal(flat, want)


def test_what_a_copy_does_not_serve_goes_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_LARGE", 0)
    flat, one = torch.zeros(64), torch.ones(4, 4)
    assert kernels.copies([one], flat)
    for other in (one.t()[:, 1:], one.double(), one.to("meta")):
        assert not kernels.copies([other], flat)
    monkeypatch.setattr(kernels, "_LARGE", 257)
    assert not kernels.copies([one], flat)
