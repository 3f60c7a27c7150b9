"""The bits of an average: equal to the literal twins', at any block size and thread count."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import twins
from lawa.averaging import kernels
from lawa.averaging.coefficients import coefficients
from lawa.averaging.finite import all_finite
from lawa.averaging.mean import average_into, average_one_by_one, block_size, ema_into, sum_into

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SPECS = [None, "linear", "one_minus_sqrt", {"ema": 0.9}]
SMALLEST = 2.0**-149  # fp32's smallest denormal


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def draws(k: int, n: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, generator=generator, dtype=torch.float64).to(dtype) for _ in range(k)]


def ours(
    snapshots: Sequence[torch.Tensor],
    c: Sequence[float] | None = None,
    *,
    out: torch.dtype = torch.float32,
    dtype: torch.dtype = torch.float32,
    block: int | None = None,
) -> torch.Tensor:
    """By the compiled loop where it serves, and by torch operations: the bits must be the same."""
    results = []
    for library in (kernels._library, None):
        with mock.patch.object(kernels, "_library", library):
            result = torch.full((snapshots[0].numel(),), float("nan"), dtype=out)  # what is left unwritten shows
            average_into(result, snapshots, c, dtype=dtype, block=block)
            results.append(result)
    assert twins.same_bits(*results)
    return results[0]


def expected(
    snapshots: Sequence[torch.Tensor],
    c: Sequence[float] | None = None,
    *,
    out: torch.dtype = torch.float32,
    dtype: torch.dtype = torch.float32,
) -> np.ndarray:
    wide = np.float64 if dtype == torch.float64 else np.float32
    return twins.rounded(twins.mean([twins.array(s) for s in snapshots], c, wide), out)


def weights(spec: object, k: int) -> tuple[float, ...] | None:
    return None if spec is None else coefficients(spec, k)  # type: ignore[arg-type]


# ---- equal bits


@pytest.mark.parametrize("k", range(1, 13))
@pytest.mark.parametrize("captured", DTYPES, ids=str)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_equal_bits_for_every_captured_dtype_and_output(k: int, captured: torch.dtype, spec: object) -> None:
    snapshots, c = draws(k, 1001, captured), weights(spec, k)
    for out in DTYPES:
        for dtype in (torch.float32, torch.float64):
            result = ours(snapshots, c, out=out, dtype=dtype)
            assert result.dtype == out
            assert twins.same_bits(result, expected(snapshots, c, out=out, dtype=dtype)), (out, dtype)


@pytest.mark.parametrize("block", [1, 2, 7, 64, 333, 999, 1000, 1001, 4096])
@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("spec", SPECS[:2], ids=str)
def test_block_size_and_threads_change_no_bit(block: int, count: int, spec: object) -> None:
    c = weights(spec, 5)
    for captured in (torch.float32, torch.bfloat16):
        snapshots = draws(5, 1000, captured)
        with threads(count):
            result = ours(snapshots, c, out=captured, block=block)
        assert twins.same_bits(result, expected(snapshots, c, out=captured))


def test_the_compiled_loop_is_built_where_a_compiler_is() -> None:
    """Otherwise every test of it would pass without it."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler here, and the installation goes on without it")
    assert kernels._library is not None


@pytest.mark.parametrize("n", [1, 15, 16, 17, 4095, 4096, 4097, 10_000])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_the_compiled_loops_threads_cover_everything_once(monkeypatch: pytest.MonkeyPatch, n: int, count: int) -> None:
    monkeypatch.setattr(kernels, "_PER_THREAD", 5)
    snapshots = draws(3, n)
    with threads(count):
        assert twins.same_bits(ours(snapshots), expected(snapshots))
        assert twins.same_bits(ours(snapshots, [0.2, 0.3, 0.5]), expected(snapshots, [0.2, 0.3, 0.5]))


def test_snapshots_that_are_no_contiguous_fp32_or_bf16_are_served_by_torch() -> None:
    spread = [torch.stack([row, row], 1)[:, 0] for row in draws(3, 50)]
    assert not kernels.serve(spread, torch.float32)
    assert not kernels.serve(draws(3, 50, torch.float16), torch.float32)
    assert not kernels.serve(draws(3, 50), torch.float64)
    assert twins.same_bits(ours(spread), expected(spread))
    out = torch.zeros(50, 2)[:, 0]
    average_into(out, draws(3, 50))
    assert twins.same_bits(out, expected(draws(3, 50)))


def test_threads_change_no_bit_where_torch_really_uses_them() -> None:
    """Torch splits an operation between threads from 32,768 elements on."""
    snapshots, c = draws(3, 300_001, torch.bfloat16), weights("linear", 3)
    want = expected(snapshots, c)
    for count in (1, 2, 4):
        with threads(count):
            assert twins.same_bits(ours(snapshots, c), want), count


def test_more_elements_than_the_default_block() -> None:
    n = block_size(torch.device("cpu")) + 3
    snapshots = draws(2, n)
    assert twins.same_bits(ours(snapshots), expected(snapshots))
    assert twins.same_bits(ours(snapshots, (0.25, 0.75)), expected(snapshots, (0.25, 0.75)))


def test_snapshots_are_left_as_they_are() -> None:
    for captured in DTYPES:
        snapshots = draws(4, 100, captured)
        before = [snapshot.clone() for snapshot in snapshots]
        ours(snapshots, out=captured)
        ours(snapshots, (0.1, 0.2, 0.3, 0.4), out=captured, dtype=torch.float64)
        assert all(torch.equal(a, b) for a, b in zip(snapshots, before, strict=True))


def test_views_into_a_larger_tensor_are_written_alone() -> None:
    whole = torch.full((30,), 7.0)
    snapshots = draws(3, 10)
    average_into(whole[10:20], snapshots, block=3)
    assert twins.same_bits(whole[10:20], expected(snapshots))
    assert torch.equal(torch.cat([whole[:10], whole[20:]]), torch.full((20,), 7.0))


def test_nothing_to_average_is_no_error() -> None:
    assert ours([torch.empty(0), torch.empty(0)]).numel() == 0
    assert ours([torch.empty(0, dtype=torch.bfloat16)], (1.0,), out=torch.float16).numel() == 0


def test_uniform_and_a_list_of_equal_coefficients_have_different_bits() -> None:
    """Why they are two formulas: one rounding against k; so neither may stand in for the other."""
    snapshots = draws(10, 1000)
    assert not twins.same_bits(ours(snapshots), ours(snapshots, (0.1,) * 10))


def test_the_order_matters_to_the_bits_and_oldest_comes_first() -> None:
    big, small = torch.tensor([2.0**24]), torch.tensor([1.0])
    assert ours([big, small, small], None).item() == np.float32(2**24) * np.float32(1 / 3)  # each 1 is lost on its own
    assert ours([small, small, big], None).item() == np.float32(2**24 + 2) * np.float32(1 / 3)  # 1 + 1 is not


# ---- corners of the number line

EDGES = [
    0.0, -0.0, 1.0, -1.0, SMALLEST, -SMALLEST, 3 * SMALLEST, 2.0**-126, 2.0**-126 - SMALLEST,
    3.4028234e38, -3.4028234e38, 1e-30, -1e30, float("inf"), float("-inf"), float("nan"), 1 / 3, 2.0**24 + 2,
    6e-8, 65504.0,
]  # fmt: skip


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("captured", DTYPES, ids=str)
def test_corners_every_edge_with_every_other(k: int, captured: torch.dtype) -> None:
    """−0.0, denormals, overflow in the sum, inf − inf, nan: as IEEE has them, never flushed or clamped."""
    values = torch.tensor(EDGES, dtype=torch.float64)
    grids = torch.meshgrid(*[values] * k, indexing="ij")
    snapshots = [grid.reshape(-1).to(captured) for grid in grids]
    for c in (None, weights("linear", k), weights({"ema": 0.3}, k)):
        for out in DTYPES:
            assert twins.same_bits(ours(snapshots, c, out=out), expected(snapshots, c, out=out)), (c, out)


def test_minus_zero_alone_becomes_zero_because_the_sum_starts_at_zero() -> None:
    minus = torch.tensor([-0.0])
    for c in (None, (1.0,)):
        assert not torch.signbit(ours([minus], c)).item()
    assert not torch.signbit(ours([minus, minus])).item()


def test_denormals_survive() -> None:
    tiny = torch.tensor([SMALLEST * 6])
    assert ours([tiny, tiny, tiny]).item() == np.float32(SMALLEST * 18) * np.float32(1 / 3) > 0


def test_infinities_and_nans_propagate() -> None:
    inf, one, nan = torch.tensor([float("inf")]), torch.tensor([1.0]), torch.tensor([float("nan")])
    for c in (None, (0.5, 0.5)):
        assert ours([inf, one], c).item() == float("inf")
        assert torch.isnan(ours([inf, -inf], c)).item()
        assert torch.isnan(ours([one, nan], c)).item()
    assert ours([torch.tensor([3e38]), torch.tensor([3e38])]).item() == float("inf"), "fp32 overflows"
    assert ours([torch.tensor([3e38]), torch.tensor([3e38])], dtype=torch.float64).item() == pytest.approx(3e38)


floats32 = st.floats(width=32, allow_nan=True, allow_infinity=True, allow_subnormal=True)


@settings(deadline=None)
@given(
    st.data(), st.integers(1, 6), st.integers(1, 40), st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
)
def test_equal_bits_for_any_values(data: st.DataObject, k: int, n: int, captured: torch.dtype) -> None:
    arrays = data.draw(hnp.arrays(np.float32, (k, n), elements=floats32))
    block = data.draw(st.integers(1, n + 1))
    c = data.draw(st.one_of(st.none(), st.lists(st.floats(-2, 2), min_size=k, max_size=k)))
    snapshots = [torch.from_numpy(row).to(captured) for row in arrays]
    assert twins.same_bits(ours(snapshots, c, out=captured, block=block), expected(snapshots, c, out=captured))


# ---- how exact


@pytest.mark.parametrize("k", [1, 2, 3, 10, 100])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_close_to_float64_within_the_bound(k: int, spec: object) -> None:
    snapshots, c = draws(k, 2000), weights(spec, k)
    arrays = [twins.array(snapshot) for snapshot in snapshots]
    lost = np.abs(ours(snapshots, c).double().numpy() - twins.exact(arrays, c))
    assert np.all(lost <= twins.error_bound(arrays, c))
    assert k == 1 or lost.max() > 0, "a bound that nothing approaches would prove nothing"


@settings(deadline=None)
@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 8), st.integers(1, 20)),
        elements=st.floats(-(2.0**100), 2.0**100, width=32),
    )
)
def test_close_to_float64_for_any_values(arrays: np.ndarray) -> None:
    rows = list(arrays)
    result = ours([torch.from_numpy(row) for row in rows]).double().numpy()
    assert np.all(np.abs(result - twins.exact(rows)) <= twins.error_bound(rows))


def test_accumulating_in_fp64_rounds_once_to_fp32() -> None:
    snapshots = draws(100, 2000)
    arrays = [twins.array(snapshot) for snapshot in snapshots]
    wide = ours(snapshots, dtype=torch.float64)
    lost = np.abs(wide.double().numpy() - twins.exact(arrays))
    assert np.all(lost <= np.spacing(np.abs(wide.numpy())) / 2 + 1e-15), "half a unit in the last place"
    assert not twins.same_bits(wide, ours(snapshots)), "fp32 alone loses something here"


def test_a_bf16_mean_of_a_thousand_draws_is_the_exact_one_rounded() -> None:
    """torch's AveragedModel averages in the module's dtype: rms error 4.3e-3, against 3.3e-4 for one rounding."""
    generator = torch.Generator().manual_seed(1)
    snapshots = [(1 + 0.1 * torch.randn(2000, generator=generator)).bfloat16() for _ in range(1000)]
    exact = twins.exact([twins.array(snapshot) for snapshot in snapshots])

    def rms(result: torch.Tensor) -> float:
        return float(np.sqrt(np.mean((twins.array(result) - exact) ** 2)))

    in_its_own_dtype = snapshots[0].clone()
    for n, snapshot in enumerate(snapshots[1:], start=2):
        in_its_own_dtype += (snapshot - in_its_own_dtype) / n
    one_rounding = rms(torch.from_numpy(exact).bfloat16())
    assert rms(ours(snapshots, out=torch.bfloat16)) == pytest.approx(one_rounding, rel=0.01)
    assert rms(in_its_own_dtype) > 2 * one_rounding, "the fault this test is about"


# ---- one snapshot in memory at a time


def one_by_one(
    snapshots: Sequence[torch.Tensor],
    c: Sequence[float] | None = None,
    *,
    out: torch.dtype = torch.float32,
    dtype: torch.dtype = torch.float32,
    block: int | None = None,
) -> torch.Tensor:
    """Each read into the same memory, which the next one overwrites; each asked for once."""
    memory = torch.empty_like(snapshots[0])

    def reading() -> Iterator[torch.Tensor]:
        for snapshot in snapshots:
            yield memory.copy_(snapshot)
        memory.fill_(float("nan"))

    result = torch.full((snapshots[0].numel(),), float("nan"), dtype=out)
    average_one_by_one(result, reading(), len(snapshots), c, dtype=dtype, block=block)
    return result


@pytest.mark.parametrize("k", [1, 2, 5, 12])
@pytest.mark.parametrize("captured", DTYPES, ids=str)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_one_by_one_has_the_bits_of_all_together(k: int, captured: torch.dtype, spec: object) -> None:
    snapshots, c = draws(k, 1001, captured), weights(spec, k)
    for out in DTYPES:
        for dtype in (torch.float32, torch.float64):
            result = one_by_one(snapshots, c, out=out, dtype=dtype)
            assert twins.same_bits(result, expected(snapshots, c, out=out, dtype=dtype)), (out, dtype)
            assert twins.same_bits(result, ours(snapshots, c, out=out, dtype=dtype)), (out, dtype)


@pytest.mark.parametrize("block", [1, 7, 333, 999, 1000, 1001, 4096])
@pytest.mark.parametrize("spec", SPECS[:2], ids=str)
def test_one_by_one_at_any_block_size(block: int, spec: object) -> None:
    for captured in DTYPES:
        snapshots, c = draws(5, 1000, captured), weights(spec, 5)
        result = one_by_one(snapshots, c, out=captured, block=block)
        assert twins.same_bits(result, expected(snapshots, c, out=captured))


@pytest.mark.parametrize("captured", DTYPES, ids=str)
def test_one_by_one_in_the_corners(captured: torch.dtype) -> None:
    snapshots = [
        grid.reshape(-1).to(captured)
        for grid in torch.meshgrid(*[torch.tensor(EDGES, dtype=torch.float64)] * 2, indexing="ij")
    ]
    for c in (None, weights("linear", 2)):
        for out in DTYPES:
            assert twins.same_bits(one_by_one(snapshots, c, out=out), expected(snapshots, c, out=out)), (c, out)


def test_one_by_one_of_nothing_and_into_a_view() -> None:
    assert one_by_one([torch.empty(0), torch.empty(0)]).numel() == 0
    snapshots, out = draws(3, 50, torch.bfloat16), torch.zeros(50, 2)
    average_one_by_one(out[:, 0], snapshots, 3)
    assert twins.same_bits(out[:, 0], expected(snapshots))
    assert torch.equal(out[:, 1], torch.zeros(50))


# ---- EMA and running sums


@pytest.mark.parametrize("captured", DTYPES, ids=str)
@pytest.mark.parametrize("beta", [0.5, 0.9, 0.999, 0.9999])
def test_ema_has_the_twins_bits(captured: torch.dtype, beta: float) -> None:
    readings = [reading.view(20, 5) for reading in draws(12, 100, captured)]
    wide = torch.float64 if captured == torch.float64 else torch.float32
    ema = readings[0].to(wide, copy=True)
    for reading in readings[1:]:
        ema_into(ema, reading.to(wide, copy=True), beta)
    arrays = [twins.array(reading) for reading in readings]
    assert twins.same_bits(ema, twins.ema(arrays, beta, np.float64 if wide == torch.float64 else np.float32))
    assert ema.double().numpy() == pytest.approx(twins.exact_ema(arrays, beta), abs=2e-6)


def test_ema_of_a_weight_that_rests_stays_to_the_bit() -> None:
    """e·β + θ·(1 − β) drifts here; e + (1 − β)(θ − e) does not."""
    theta = draws(1, 1000)[0]
    ema = theta.clone()
    for _ in range(100):
        ema_into(ema, theta.clone(), 0.999)
    assert torch.equal(ema, theta)


def test_ema_of_bf16_weights_moves_at_0_9999() -> None:
    """Kept in bf16 (torch, timm, diffusers) it stays at 1.0 for ever; exact after 10,000 steps: 1.063."""
    ema, theta = torch.ones(1), torch.full((1,), 1.1).bfloat16()
    kept_in_bf16 = torch.ones(1).bfloat16()
    for _ in range(10_000):
        ema_into(ema, theta.float(), 0.9999)
        kept_in_bf16 += 0.0001 * (theta - kept_in_bf16)
    want = theta.item() + 0.9999**10_000 * (1 - theta.item())
    assert ema.item() == pytest.approx(want, abs=1e-4)
    assert kept_in_bf16.item() == 1.0, "the fault this test is about"


@pytest.mark.parametrize("captured", DTYPES, ids=str)
@pytest.mark.parametrize("k", [1, 2, 5, 11])
def test_a_running_sum_scaled_once_has_the_bits_of_the_uniform_mean(captured: torch.dtype, k: int) -> None:
    snapshots = draws(k, 333, captured)
    wide = torch.float64 if captured == torch.float64 else torch.float32
    total = torch.zeros(333, dtype=wide)
    for snapshot in snapshots:
        sum_into(total, snapshot.to(wide))
    assert twins.same_bits(total * (1 / k), ours(snapshots, out=wide, dtype=wide))


# ---- finite?


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_one_bad_value_anywhere_is_found(dtype: torch.dtype, bad: float) -> None:
    for n in (1, 2, 33, 100):
        for at in range(n):
            flat = torch.full((n,), -1.5, dtype=dtype)
            assert all_finite(flat)
            flat[at] = bad
            assert not all_finite(flat), (n, at)


def test_a_bad_value_in_the_last_block_is_found_and_nothing_is_finite() -> None:
    flat = torch.zeros(block_size(torch.device("cpu")) * 2 + 1)
    assert all_finite(flat)
    flat[-1] = float("nan")
    assert not all_finite(flat)
    assert all_finite(torch.empty(0))


def test_the_largest_numbers_are_finite() -> None:
    for dtype in DTYPES:
        info = torch.finfo(dtype)
        flag = all_finite(torch.tensor([info.max, info.min, info.tiny, -0.0], dtype=dtype))
        assert flag.shape == ()
        assert flag.dtype == torch.bool
        assert flag
