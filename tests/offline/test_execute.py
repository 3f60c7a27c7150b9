"""The engine's outputs: the twins' bits, for all dtypes, windows, coefficients and ways to lay out the files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import twins
from lawa import WeightAverager, Window
from lawa.averaging.coefficients import Spec, coefficients
from lawa.offline import execute, files_kernel, plan
from lawa.offline.execute import lay_out, run
from lawa.offline.plan import Mean
from lawa.offline.policy import Policy
from offline import engine
from offline.engine import DTYPES, PATHS, carry_out, draws, planned, same, twin, write

SPECS: list[Spec] = [
    "uniform", "linear", "one_minus_sqrt", {"ema": 0.9}, {"decay": "cosine"},
    {"decay": [1.0, 0.9, 0.5, 0.3, 0.2, 0.2, 0.0]}, [0.5, -0.25, 0.3, 0.2, 0.15, 0.1],
]  # fmt: skip
K = 6
SHAPES = {"matrix": (17, 19), "vector": (333,), "scalar": (), "one": (1, 1), "empty": (0, 4)}
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float64: "float64"}


def weights(spec: Spec, k: int) -> tuple[float, ...] | None:
    return None if spec == "uniform" else coefficients(spec, k)


def states(dtypes: list[torch.dtype], shapes: dict[str, tuple[int, ...]] = SHAPES) -> list[dict[str, Tensor]]:
    return [
        {name: draws(shape, dtype, 100 * number + at) for at, (name, shape) in enumerate(shapes.items())}
        for number, dtype in enumerate(dtypes)
    ]


def check(outputs: list[dict[str, Tensor]], told: list[dict[str, Tensor]], means: list[Mean], **how: Any) -> None:
    out, accumulate = how.get("out"), how.get("accumulate", "float32")
    for found, mean in zip(outputs, means, strict=True):
        assert found.keys() == told[-1].keys()
        for name, newest in told[-1].items():
            thetas = [told[index][name] for index in mean.inputs]
            dtype = out or newest.dtype
            assert (found[name].dtype, found[name].shape) == (dtype, newest.shape)
            assert same(found[name], twin(thetas, mean.coefficients, dtype, accumulate)), (mean, name)


# ---- bits


@pytest.mark.parametrize("way", PATHS)
@pytest.mark.parametrize("out", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_twins_bits_for_every_pair_of_dtypes_and_every_family(
    tmp_path: Path, dtype: torch.dtype, out: torch.dtype, way: str
) -> None:
    """All families are outputs of one plan."""
    told = states([dtype] * K)
    catalogs = [write(tmp_path / f"step{number}", state) for number, state in enumerate(told)]
    means = [Mean(str(spec), tuple(range(K)), weights(spec, K)) for spec in SPECS]
    for accumulate in ("float32", "float64"):
        work = planned(catalogs, means, accumulate=accumulate, out_dtype=NAMES[out])
        with engine.path(way):
            outputs = carry_out(work, tmp_path / accumulate)
        check(outputs, told, means, out=out, accumulate=accumulate)
        for found, mean in zip(outputs, means, strict=True):
            thetas = [twins.array(state["matrix"]) for state in told]
            off = np.abs(twins.array(found["matrix"]).astype(np.float64) - twins.exact(thetas, mean.coefficients))
            rounding = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}.get(out, 2.0**-23) * 8 + 2.0**-25
            assert np.all(off <= twins.error_bound(thetas, mean.coefficients) + rounding)


def test_families_differ_so_that_none_is_taken_for_another() -> None:
    told = [weights(spec, K) or (1 / K,) * K for spec in SPECS]
    assert len({tuple(round(c, 6) for c in one) for one in told}) == len(told)


@pytest.mark.parametrize("way", PATHS)
def test_dtypes_that_differ_between_checkpoints(tmp_path: Path, way: str) -> None:
    """Each is widened as it is; the output has the latest one's. Seven alike of ten: the compiled loop takes five."""
    dtypes = [torch.float32, *[torch.bfloat16] * 7, torch.float16, torch.float16]
    for case, row in enumerate([dtypes, dtypes[::-1], [torch.bfloat16, torch.float64, torch.bfloat16]]):
        told = states(row)
        catalogs = [write(tmp_path / f"{case}.{number}", state) for number, state in enumerate(told)]
        every = tuple(range(len(row)))
        means = [Mean("a", every, None), Mean("b", every, weights("linear", len(row))), Mean("c", every[2:], None)]
        with engine.path(way):
            check(carry_out(planned(catalogs, means), tmp_path / f"out{case}"), told, means)


@pytest.mark.parametrize("way", PATHS)
def test_every_window_of_a_trajectory_in_one_pass(tmp_path: Path, way: str) -> None:
    told = states([torch.bfloat16] * 12)
    catalogs = [write(tmp_path / f"step{number}", state) for number, state in enumerate(told)]
    means = [
        Mean(f"{spec}{k}.{end}", tuple(range(end - k, end)), weights(spec, k))
        for k in (1, 3, 5, 10)
        for spec in ("uniform", "linear")
        for end in range(k, len(told) + 1)
    ]
    means.append(Mean("spaced", (1, 4, 7, 10), None))
    with engine.path(way):
        check(carry_out(planned(catalogs, means), tmp_path / "out"), told, means)


@pytest.mark.parametrize("way", PATHS)
@pytest.mark.parametrize("item", [1000, 4096, 4097, 5000, 1 << 22])
@pytest.mark.parametrize("in_cache", [1, 8192 * 20, 3 << 18])
def test_items_and_blocks_change_no_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, item: int, in_cache: int, way: str
) -> None:
    """Blocks of 4096, 8192 and more elements; the sums go in pieces of 4096."""
    monkeypatch.setattr(plan, "ITEM", item)
    monkeypatch.setattr(files_kernel, "_IN_CACHE", in_cache)
    monkeypatch.setattr(files_kernel, "_HELD", in_cache)
    generator = torch.Generator().manual_seed(item)
    told = [{"w": torch.randn(3 * 4096 + 1005, generator=generator).bfloat16()} for _ in range(10)]
    catalogs = [write(tmp_path / f"step{number}", state) for number, state in enumerate(told)]
    means = [Mean("a", tuple(range(10)), None), Mean("b", (3, 4, 5), weights("linear", 3))]
    with engine.path(way):
        outputs = carry_out(planned(catalogs, means, out_dtype="float32"), tmp_path / "out", threads=3)
    for found, mean in zip(outputs, means, strict=True):
        expected = twins.mean([twins.array(told[index]["w"]) for index in mean.inputs], mean.coefficients)
        assert same(found["w"], expected)


@pytest.mark.parametrize("way", PATHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spec", ["uniform", [0.75, 0.5, -0.25]], ids=str)
def test_corners_every_edge_with_every_other(tmp_path: Path, dtype: torch.dtype, spec: Spec, way: str) -> None:
    """±0, denormals, ties, overflow of sums and outputs, inf − inf, nan: as IEEE has them, for every output dtype."""
    edges = [0.0, -0.0, 1.0, -1.0, 1 + 2.0**-8, 1 + 2.0**-7, 2.0**-24, 2.0**-126, 2.0**-149, -(2.0**-149), 6e-8,
             65504.0, 65519.0, 65536.0, 3.3e38, -3.3e38, float("inf"), -float("inf"), float("nan")]  # fmt: skip
    grids = torch.meshgrid(*[torch.tensor(edges, dtype=torch.float64)] * 3, indexing="ij")
    told = [{"w": grid.reshape(-1).to(dtype)} for grid in grids]
    catalogs = [write(tmp_path / f"step{number}", state) for number, state in enumerate(told)]
    means = [Mean("a", (0, 1, 2), weights(spec, 3))]
    for out in DTYPES:
        work = planned(catalogs, means, out_dtype=NAMES[out])
        with engine.path(way):
            outputs = carry_out(work, tmp_path / NAMES[out], allow_non_finite=True)
        check(outputs, told, means, out=out)


def test_ties_of_the_output_go_to_even(tmp_path: Path) -> None:
    for way in PATHS:
        told = [{"w": torch.tensor([value, value + 2.0**-7])} for value in (1.0, 1.0 + 2.0**-7)]
        catalogs = [write(tmp_path / f"{way}{number}", state) for number, state in enumerate(told)]
        with engine.path(way):
            (found,) = carry_out(planned(catalogs, out_dtype="bfloat16"), tmp_path / f"{way}out")
        assert found["w"].tolist() == [1.0, 1.0 + 2.0**-6]


stored = st.sampled_from(DTYPES[:3])


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(st.data(), st.integers(1, 7), st.integers(1, 4))
def test_any_shapes_dtypes_shards_and_windows(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, k: int, count: int
) -> None:
    tmp_path = tmp_path_factory.mktemp("any")
    shapes = {
        f"t{number}": tuple(data.draw(st.lists(st.integers(0, 5), max_size=3), label="shape"))
        for number in range(count)
    } | {"w": (3,)}
    told, catalogs = [], []
    for step in range(k):
        state = {
            name: draws(shape, data.draw(stored), 10 * step + at) for at, (name, shape) in enumerate(shapes.items())
        }
        shard_of = {name: data.draw(st.integers(0, 2)) for name in state} if data.draw(st.booleans()) else None
        told.append(state)
        catalogs.append(write(tmp_path / f"step{step}", state, shard_of=shard_of))
    windows = data.draw(
        st.lists(
            st.lists(st.integers(0, k - 1), min_size=1, max_size=k, unique=True).map(sorted), min_size=1, max_size=3
        )
    )
    means = [
        Mean(str(number), tuple(window), weights(data.draw(st.sampled_from(SPECS[:5])), len(window)))
        for number, window in enumerate(windows)
    ]
    out = data.draw(st.sampled_from([None, *DTYPES]))
    work = planned(
        catalogs,
        means,
        out_dtype=None if out is None else NAMES[out],
        shard_bytes=data.draw(st.sampled_from([1, 50, 10**9])),
    )
    for way in PATHS:
        with engine.path(way):
            check(carry_out(work, tmp_path / way), told, means, out=out)


# ---- the loop's bits


@pytest.mark.parametrize("spec", ["uniform", "linear", {"ema": 0.5}], ids=str)
def test_the_bits_of_the_loops_average_over_the_same_snapshots(tmp_path: Path, spec: Spec) -> None:
    """Weights, saved at each capture in the dtype they are kept in, against WeightAverager's own average."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(5, 7, dtype=dtype) for dtype in DTYPES))
    averager = WeightAverager(model, mode="evaluate", averages={"lawa": Window(5, every=2, coefficients=spec)})
    catalogs = []
    for update in range(1, 15):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape).to(parameter.dtype))
        averager.update()
        if update % 2 == 0:
            catalogs.append(write(tmp_path / f"step{update}", model.state_dict()))
    means = [Mean("", tuple(range(2, 7)), weights(spec, 5))]
    with averager.averaged("lawa"):
        expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for way in PATHS:
        with engine.path(way):
            (found,) = carry_out(planned(catalogs, means), tmp_path / way)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.dtype
            assert twins.same_bits(found[name], tensor), (way, name)


# ---- what is not averaged


def test_what_is_not_averaged_is_its_windows_latest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execute, "_COPIED", 24)
    monkeypatch.setattr(plan, "ITEM", 4)
    told = [
        {
            "w": draws((5,), torch.float32, step),
            "count": torch.arange(11) + step,
            "mask": torch.tensor([True, step % 2 == 0]),
            "norm": draws((9,), torch.bfloat16, 50 + step),
        }
        for step in range(4)
    ]
    catalogs = [write(tmp_path / f"step{step}", state) for step, state in enumerate(told)]
    means = [Mean("a", (0, 1), None), Mean("b", (1, 3), None), Mean("c", (2, 3), None)]
    work = planned(catalogs, means, policy=Policy(latest=("norm",)), out_dtype="float64")
    outputs = carry_out(work, tmp_path / "out")
    for found, mean in zip(outputs, means, strict=True):
        assert found["w"].dtype == torch.float64
        for name in ("count", "mask", "norm"):
            assert found[name].dtype == told[0][name].dtype
            assert torch.equal(found[name], told[mean.inputs[-1]][name]), (mean.name, name)


# ---- each byte once


def read_and_written() -> tuple[int, int]:
    counted = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counted["rchar"]), int(counted["wchar"])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="this system does not count what is read")
@pytest.mark.parametrize("way", PATHS)
def test_each_byte_of_each_input_is_read_once_and_each_output_written_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """As the system counts it, with several windows, families, shards, and a tensor that is not averaged."""
    monkeypatch.setattr(plan, "ITEM", 7000)
    told = [
        {
            "w": draws((60_000,), torch.bfloat16, step),
            "v": draws((9_000,), torch.float32, step),
            "n": torch.arange(20_000),
        }
        for step in range(6)
    ]
    catalogs = [
        write(tmp_path / f"step{step}", state, shard_of={"w": step % 2, "v": 1, "n": 0})
        for step, state in enumerate(told)
    ]
    means = [Mean(f"{k}.{end}", tuple(range(end - k, end)), None) for k in (2, 3) for end in range(k, 7)]
    work = planned(catalogs, means)
    outputs = [tmp_path / mean.name for mean in means]
    for output in outputs:
        output.mkdir()
        lay_out(work, output)
    with engine.path(way):
        run(work, outputs, [], threads=1, done=lambda index: None)  # what is read when Python loads something
        before = read_and_written()
        run(work, outputs, range(len(work.items)), threads=2, done=lambda index: None)
        after = read_and_written()
    read, written = (now - then for now, then in zip(after, before, strict=True))
    assert work.bytes_read == 6 * (120_000 + 36_000) + 5 * 160_000, "integers: of the latest of a window alone"
    assert 0 <= read - work.bytes_read < 3000, "the rest is /proc/self/io"
    assert written == len(means) * (120_000 + 36_000 + 160_000)


def test_each_byte_is_asked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The torch path, read by read: no two of them overlap."""
    told = states([torch.bfloat16] * 5)
    catalogs = [write(tmp_path / f"step{number}", state) for number, state in enumerate(told)]
    monkeypatch.setattr(plan, "ITEM", 50)
    asked: list[tuple[Path, int]] = []
    preadv = os.preadv

    def noted(fd: int, buffers: list[memoryview], at: int) -> int:
        done = preadv(fd, buffers, at)
        asked.extend((Path(f"/proc/self/fd/{fd}").readlink(), byte) for byte in range(at, at + done))
        return done

    monkeypatch.setattr(os, "preadv", noted)
    work = planned(catalogs, [Mean("a", (0, 1, 2), None), Mean("b", (1, 2, 3, 4), weights("linear", 4))])
    with engine.path("torch"):
        carry_out(work, tmp_path / "out")
    assert len(asked) == len(set(asked)) == work.bytes_read == sum(one.nbytes for one in catalogs)
