"""The compiled loop from files to files against the same work by torch: bits, addresses, errors."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import twins
from lawa.checkpoints.catalog import ITEMSIZE, Stored
from lawa.offline import files_kernel
from lawa.offline.files_kernel import Source, average, average_by_torch, block_of, is_finite, serve
from offline import engine
from offline.engine import DTYPES, PATHS, draws

WAYS = {"compiled": average, "torch": average_by_torch}
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float64: "float64"}


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Files]:
    files = Files(tmp_path)
    yield files
    files.close()


class Files:
    """Tensors in files, at odd places; and outputs of which every byte that is not written shows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.descriptors: list[int] = []

    def source(self, tensor: torch.Tensor, offset: int = 0) -> Source:
        raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        return self._file(b"\xaa" * offset + raw), offset, NAMES[tensor.dtype]

    def target(self, n: int, dtype: str, offset: int = 0) -> Source:
        return self._file(b"\xaa" * (offset + n * ITEMSIZE[dtype] + 3)), offset, dtype

    def result(self, target: Source, start: int, stop: int) -> torch.Tensor:
        """Its elements start … stop; around them nothing was written."""
        fd, offset, dtype = target
        size = ITEMSIZE[dtype]
        raw = os.pread(fd, 1 << 24, 0)
        first, end = offset + start * size, offset + stop * size
        assert set(raw[:first] + raw[end:]) <= {0xAA}
        return torch.frombuffer(bytearray(raw[first:end]), dtype=getattr(torch, dtype))

    def _file(self, content: bytes) -> int:
        file = self.folder / str(len(self.descriptors))
        file.write_bytes(content)
        self.descriptors.append(os.open(file, os.O_RDWR))
        return self.descriptors[-1]

    def close(self) -> None:
        while self.descriptors:
            os.close(self.descriptors.pop())


def test_the_compiled_loop_is_built_where_a_compiler_is() -> None:
    """Otherwise every test of it would pass without it."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler here, and the installation goes on without it")
    assert files_kernel._library is not None


@pytest.mark.parametrize("way", PATHS)
@pytest.mark.parametrize(("start", "stop"), [(0, 9000), (1, 2), (4095, 8193), (17, 8999)])
def test_stretches_of_tensors_at_odd_offsets(opened: Files, start: int, stop: int, way: str) -> None:
    """Offsets that are multiples of nothing; outside of the stretch nothing is written."""
    thetas = [draws((9000,), dtype, seed) for seed, dtype in enumerate(DTYPES[:3] * 2)]
    sources = [opened.source(theta, 1 + 3 * seed) for seed, theta in enumerate(thetas)]
    targets = [opened.target(9000, "float32", 5), opened.target(9000, "float32", 12)]
    members, c = [[0, 2, 5], [1, 1, 3]], [None, (0.5, 0.25, 0.25)]
    assert WAYS[way](sources, targets, members, c, start, stop).errno == 0
    for target, chosen, weights in zip(targets, members, c, strict=True):
        expected = twins.mean([twins.array(thetas[index]) for index in chosen], weights)
        assert twins.same_bits(opened.result(target, start, stop), expected[start:stop])


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_blocks_give_the_same_bits(opened: Files, data: st.DataObject) -> None:
    """Blocks of a few elements, and every run of alike dtypes: the compiled loop adds five of one dtype in one go."""
    dtypes = data.draw(st.lists(st.sampled_from(DTYPES[:3]), min_size=1, max_size=17))
    n = data.draw(st.integers(1, 70))
    thetas = [draws((n,), dtype, seed) for seed, dtype in enumerate(dtypes)]
    c = None if data.draw(st.booleans()) else [data.draw(st.floats(-1, 1, width=32)) for _ in dtypes]
    out = data.draw(st.sampled_from(DTYPES[:3]))
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files_kernel, "block_of", lambda sources, outputs: data.draw(st.integers(1, 80)))
        for way in (average, average_by_torch):
            target = opened.target(n, NAMES[out])
            assert not way([opened.source(theta) for theta in thetas], [target], [range(len(dtypes))], [c], 0, n).errno
            found.append(opened.result(target, 0, n))
    expected = twins.rounded(twins.mean([twins.array(theta) for theta in thetas], c), out)
    assert all(twins.same_bits(result, expected) for result in found)
    opened.close()


def test_every_16_bit_pattern_is_read_as_torch_reads_it(opened: Files) -> None:
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16)
    for dtype in (torch.bfloat16, torch.float16):
        theta, target = every.view(dtype), opened.target(1 << 16, "float32")
        average([opened.source(theta)], [target], [[0]], [None], 0, 1 << 16)
        expected = twins.uniform([twins.array(theta)])
        assert twins.same_bits(opened.result(target, 0, 1 << 16), expected)


@pytest.mark.parametrize("out", [torch.bfloat16, torch.float16], ids=str)
def test_every_rounding_to_16_bits_is_that_of_torch(opened: Files, out: torch.dtype) -> None:
    """Around each of their values: on it, halfway to the next, and one bit to either side of that."""
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16).view(out).double()
    every = every[every.isfinite()].sort().values
    half = ((every[1:] + every[:-1]) / 2).float()
    corners = [half, half.nextafter(torch.tensor(9e38)), half.nextafter(torch.tensor(-9e38)), every.float()]
    theta = torch.cat([*corners, torch.tensor([65519.9, 65520.0, 3.4e38, 1e-45, float("nan"), float("inf")])])
    target = opened.target(theta.numel(), NAMES[out])
    average([opened.source(theta)], [target], [[0]], [None], 0, theta.numel())
    assert twins.same_bits(opened.result(target, 0, theta.numel()), (theta + 0.0).to(out))


@pytest.mark.parametrize("way", PATHS)
@pytest.mark.parametrize("out", ["float32", "bfloat16", "float16"])
def test_only_outputs_that_are_not_finite_are_told(opened: Files, out: str, way: str) -> None:
    good, bad = draws((5000,), torch.float32, 0), draws((5000,), torch.float32, 1)
    for where in (0, 4095, 4096, 4999):
        for value in (float("nan"), float("inf"), -float("inf")):
            bad[where] = value
            sources = [opened.source(good), opened.source(bad)]
            targets = [opened.target(5000, out) for _ in range(3)]
            done = WAYS[way](sources, targets, [[0], [0, 1], [1]], [None, None, (1.0,)], 0, 5000)
            assert (done.errno, list(done.not_finite)) == (0, [1, 2])
            bad[where] = 0.0


@pytest.mark.parametrize("way", PATHS)
@pytest.mark.parametrize("out", ["float32", "bfloat16", "float16"])
def test_no_nan_becomes_a_number(opened: Files, out: str, way: str) -> None:
    """Rounded as a number is, one with all bits set would become −0, and one with the last bit set inf."""
    theta = torch.tensor([0x7FFFFFFF, -1, 0x7F800001, -(2**23) + 1, 0x7FC00000], dtype=torch.int32).view(torch.float32)
    target = opened.target(5, out)
    assert list(WAYS[way]([opened.source(theta)], [target], [[0]], [None], 0, 5).not_finite) == [0]
    assert opened.result(target, 0, 5).isnan().all()


@pytest.mark.parametrize("way", PATHS)
def test_the_source_that_ends_early_is_told(opened: Files, way: str) -> None:
    theta = draws((9000,), torch.bfloat16, 0)
    sources = [opened.source(theta), opened.source(theta[:8999]), opened.source(theta)]
    done = WAYS[way](sources, [opened.target(9000, "bfloat16")], [[0, 1, 2]], [None], 0, 9000)
    assert done.at == 1
    assert done.sentence == "it ends before its tensors do; it was cut off, or changed while it was read"


@pytest.mark.parametrize("way", PATHS)
def test_what_the_system_refuses_is_told_with_its_words(opened: Files, tmp_path: Path, way: str) -> None:
    theta = draws((100,), torch.float32, 0)
    sources, target = [opened.source(theta), opened.source(theta)], opened.target(100, "float32")
    for flags, file, sentence, at in (
        (os.O_RDONLY, tmp_path, "Is a directory", 1),
        (os.O_WRONLY, tmp_path / "0", "Bad file descriptor", 1),
    ):
        wrong = os.open(file, flags)
        done = WAYS[way]([sources[0], (wrong, 0, "float32")], [target], [[0, 1]], [None], 0, 100)
        assert (done.at, done.sentence) == (at, sentence)
        os.close(wrong)
    for flags, file, number in ((os.O_RDWR, "/dev/full", errno.ENOSPC), (os.O_RDONLY, tmp_path / "0", errno.EBADF)):
        wrong = os.open(file, flags)
        done = WAYS[way](sources, [target, (wrong, 0, "float32")], [[0], [1]], [None, None], 0, 100)
        assert (done.errno, done.at) == (number, 3), "sources first, then outputs"
        os.close(wrong)


def test_reads_and_writes_that_come_in_pieces(opened: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """As network file systems may do; the compiled loop has the same loops."""
    preadv, pwrite = os.preadv, os.pwrite
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: preadv(fd, [buffers[0][:7]], at))
    monkeypatch.setattr(os, "pwrite", lambda fd, piece, at: pwrite(fd, piece[:5], at))
    theta, target = draws((100,), torch.float32, 0), opened.target(100, "float32")
    average_by_torch([opened.source(theta)], [target], [[0]], [None], 0, 100)
    assert torch.equal(opened.result(target, 0, 100), theta)


def test_what_is_served() -> None:
    assert serve({"float32", "bfloat16", "float16"}, "float16", "float32")
    assert not serve({"float32"}, "float32", "float64")
    assert not serve({"float32", "float64"}, "float32", "float32")
    assert not serve({"float32"}, "float64", "float32")
    with engine.path("torch"):
        assert not serve({"float32"}, "float32", "float32")


@pytest.mark.parametrize("k", [1, 2, 10, 20, 100, 1000])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_blocks_fit_a_cores_cache_or_are_the_smallest(k: int, dtype: str) -> None:
    block = block_of([(0, 0, dtype)] * k)
    assert block & (block - 1) == 0
    held = block * k * ITEMSIZE[dtype]
    assert block in (1 << 12, 1 << 18) or files_kernel._IN_CACHE / 2 < held <= files_kernel._IN_CACHE


@pytest.mark.parametrize("k", [1, 2, 10, 20, 100, 1000, 10000])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_blocks_of_several_outputs_are_written_in_fewer_pieces_and_still_hold_little(k: int, dtype: str) -> None:
    one, several = (block_of([(0, 0, dtype)] * k, outputs) for outputs in (1, 16))
    assert several & (several - 1) == 0
    assert several >= one
    assert several in (one, 1 << 12, 1 << 16) or several * k * ITEMSIZE[dtype] <= files_kernel._MOST
    assert several * k * ITEMSIZE[dtype] <= max(files_kernel._MOST, k * ITEMSIZE[dtype] << 12)


def test_torch_holds_little_however_many_inputs_there_are(opened: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    read_all = files_kernel.read_all

    def noted(fd: int, nbytes: int, at: int) -> bytearray:
        held.append(nbytes)
        return read_all(fd, nbytes, at)

    monkeypatch.setattr(files_kernel, "read_all", noted)
    monkeypatch.setattr(files_kernel, "_HELD", 1 << 18)
    source = opened.source(draws((20_000,), torch.float64, 0))
    average_by_torch([source] * 5, [opened.target(20_000, "float64")], [[0, 4]], [None], 0, 20_000)
    assert max(held) * 5 <= 1 << 18
    assert sum(held) == 5 * 160_000


def test_threads_do_not_meet(opened: Files) -> None:
    thetas = [draws((40_000,), torch.bfloat16, seed) for seed in range(6)]
    sources, target = [opened.source(theta) for theta in thetas], opened.target(40_000, "float32")
    edges = range(0, 40_001, 5000)

    def part(start: int, stop: int) -> None:
        for _ in range(5):
            average(sources, [target], [range(6)], [None], start, stop)

    threads = [threading.Thread(target=part, args=edge) for edge in pairwise(edges)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = twins.uniform([twins.array(theta) for theta in thetas])
    assert twins.same_bits(opened.result(target, 0, 40_000), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_is_finite_reads_the_tensor_and_nothing_else(tmp_path: Path, dtype: torch.dtype) -> None:
    bad = torch.tensor([float("nan")], dtype=dtype)
    for good, expected in ((draws((50,), dtype, 0), True), (torch.cat([draws((49,), dtype, 0), bad]), False)):
        raw = [part.view(torch.uint8).numpy().tobytes() for part in (bad, good, bad)]
        (tmp_path / "file").write_bytes(b"".join(raw))
        assert is_finite(Stored(tmp_path / "file", dtype.itemsize, NAMES[dtype], (50,))) is expected
    assert is_finite(Stored(tmp_path / "file", 0, NAMES[dtype], (0,)))


def sums(values: Sequence[float], opened: Files) -> float:
    target = opened.target(1, "float32")
    average(
        [opened.source(torch.tensor([float(value)])) for value in values], [target], [range(len(values))], [None], 0, 1
    )
    return opened.result(target, 0, 1).item() * len(values)


def test_sums_go_from_the_oldest_on(opened: Files) -> None:
    """2^24 + 1 is 2^24 in fp32; among five that are added in one go, too."""
    assert sums([2.0**24, 1, 1, 1], opened) == 2.0**24
    assert sums([1, 1, 1, 2.0**24], opened) == 2.0**24 + 4, "ties to even"
    assert sums([1, 1, 2.0**24, 1, 1, 0, 0, 0], opened) == 2.0**24 + 4
    assert sums([2.0**24, 1, -(2.0**24), 1, 0, 0, 0, 0], opened) == 1
