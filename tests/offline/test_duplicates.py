"""Inputs with the same content, and how little is read to tell."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lawa.errors import LawaError
from lawa.offline import duplicates
from lawa.offline.duplicates import find
from offline.engine import draws, read, tie, write


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of what is read."""
    sizes: list[int] = []
    preadv = os.preadv

    def noted(fd: int, buffers: list[memoryview], at: int) -> int:
        sizes.append(preadv(fd, buffers, at))
        return sizes[-1]

    monkeypatch.setattr(os, "preadv", noted)
    monkeypatch.setattr(duplicates, "_FIRST", 64)
    monkeypatch.setattr(duplicates, "_BLOCK", 100)
    return sizes


def state(seed: int) -> dict[str, Tensor]:
    return {
        "a": draws((100,), torch.float32, seed),
        "b": draws((30,), torch.bfloat16, seed),
        "c": draws((), torch.float32, seed),
    }


def nbytes(one: dict[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in one.values())


def test_groups_of_equal_inputs_are_found_whatever_their_files(tmp_path: Path, asked: list[int]) -> None:
    shards = [None, {"a": 0, "b": 1, "c": 1}, {"a": 1, "b": 1, "c": 0}]
    catalogs = [
        write(tmp_path / f"step{number}", state(seed), shard_of=shards[number % 3])
        for number, seed in enumerate([1, 2, 1, 3, 2, 4, 1])
    ]
    assert find(catalogs) == [[0, 2, 6], [1, 4]]
    assert sum(asked) == 5 * nbytes(state(0)) + 2 * 64, "all of the equal ones, a block of the others"


def test_of_inputs_that_differ_one_block_each_is_read(tmp_path: Path, asked: list[int]) -> None:
    assert find([write(tmp_path / f"step{seed}", state(seed)) for seed in range(20)]) == []
    assert asked == [64] * 20


@pytest.mark.parametrize(
    ("name", "element", "blocks"), [("a", 0, 1), ("c", None, 2), ("b", 0, 3), ("a", 20, 4), ("a", 99, 7)]
)
def test_the_first_blocks_of_all_tensors_come_before_the_rest(
    tmp_path: Path, asked: list[int], name: str, element: int | None, blocks: int
) -> None:
    """Frozen tensors, or fresh norms, are equal in all checkpoints of a run."""
    other = state(0)
    if element is None:
        other[name] = other[name] + 1
    else:
        other[name][element] += 1
    assert find([write(tmp_path / "a", state(0)), write(tmp_path / "b", other)]) == []
    assert len(asked) == 2 * blocks


def test_of_equal_ones_that_leave_the_others_late_everything_is_read_once(tmp_path: Path, asked: list[int]) -> None:
    late = state(0)
    late["b"][-1] = 7
    catalogs = [write(tmp_path / f"{number}", one) for number, one in enumerate([state(0), late, state(0), late])]
    assert find(catalogs) == [[0, 2], [1, 3]]
    assert sum(asked) == 4 * nbytes(late)


def test_the_same_files_are_told_without_reading(tmp_path: Path, asked: list[int]) -> None:
    """One path twice, hard links, and links to one blob, as the hub's cache has them."""
    first = write(tmp_path / "first", state(0))
    for name, link in (("hard", os.link), ("blob", os.symlink)):
        (tmp_path / name).mkdir()
        link(tmp_path / "first" / "model.safetensors", tmp_path / name / "model.safetensors")
    catalogs = [first, read(tmp_path / "first"), read(tmp_path / "hard"), read(tmp_path / "blob")]
    assert find(catalogs) == [[0, 1, 2, 3]]
    assert asked == []
    assert find([*catalogs, write(tmp_path / "copy", state(0)), write(tmp_path / "other", state(1))]) == [
        [0, 1, 2, 3, 4]
    ]
    assert sum(asked) == 2 * nbytes(state(0)) + 64, "the file once for all four"


def test_shards_that_are_the_same_file_are_read_once_for_all(tmp_path: Path, asked: list[int]) -> None:
    shard_of = {"a": 0, "b": 1, "c": 1}
    catalogs = [
        write(tmp_path / f"step{seed}", {**state(seed), "a": state(0)["a"]}, shard_of=shard_of) for seed in (1, 2)
    ]
    shared = tmp_path / "step2" / "model-0.safetensors"
    shared.unlink()
    shared.hardlink_to(tmp_path / "step1" / "model-0.safetensors")
    assert find(catalogs) == []
    assert asked == [64, 4, 4], "one block of the shared tensor, and then where they differ"


def test_what_is_compared_are_the_floating_tensors_that_all_have(tmp_path: Path) -> None:
    """A .bin file has masks and both names of tied tensors, the same model's safetensors have not."""
    bare = write(tmp_path / "bare", state(0))
    more = write(tmp_path / "more", {**state(0), "attention.bias": torch.ones(1, 1, 4, 4), "step": torch.tensor(7)})
    counted = write(tmp_path / "counted", {**state(0), "step": torch.tensor(8)})
    assert find([bare, tie(more, "a", "a2"), counted]) == [[0, 1, 2]]


@pytest.mark.parametrize("other", [draws((100, 1), torch.float32, 0), torch.zeros(100, dtype=torch.bfloat16)])
def test_another_shape_or_dtype_is_another_content(tmp_path: Path, asked: list[int], other: Tensor) -> None:
    assert find([write(tmp_path / "a", state(0)), write(tmp_path / "b", {**state(0), "a": other})]) == []
    assert asked == []


def test_minus_zero_and_nan_are_bytes(tmp_path: Path) -> None:
    values = torch.tensor([0.0, float("nan")])
    catalogs = [write(tmp_path / str(number), {"w": one}) for number, one in enumerate([values, -values, values])]
    assert find(catalogs) == [[0, 2]]


def test_nothing_in_common_is_nothing_equal(tmp_path: Path) -> None:
    one = write(tmp_path / "one", {"w": torch.ones(3)})
    assert find([one]) == []
    assert find([one, write(tmp_path / "two", {"v": torch.ones(3)})]) == []
    empty = [write(tmp_path / name, {"w": torch.ones(0)}) for name in ("three", "four")]
    assert find(empty) == []


def test_an_input_that_is_cut_off_is_named(tmp_path: Path) -> None:
    catalogs = [write(tmp_path / name, state(0)) for name in ("a", "b")]
    os.truncate(catalogs[1].files[0], 200)
    with pytest.raises(LawaError, match=r"b/model.safetensors.*ends before its tensors do"):
        find(catalogs)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=8))
def test_the_groups_are_those_of_comparing_everything(
    tmp_path_factory: pytest.TempPathFactory, told: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_FIRST", 4)
        patch.setattr(duplicates, "_BLOCK", 8)
        catalogs = []
        for number, (x, y) in enumerate(told):
            one = {"w": torch.zeros(7), "v": torch.zeros(3)}
            one["w"][5] = x
            one["v"][0] = y
            catalogs.append(write(folder / str(number), one))
        expected: dict[tuple[int, int], list[int]] = {}
        for number, one in enumerate(told):
            expected.setdefault(one, []).append(number)
        assert find(catalogs) == sorted(group for group in expected.values() if len(group) > 1)


def test_the_order_of_the_tensors_does_not_matter(tmp_path: Path) -> None:
    one = write(tmp_path / "one", state(0))
    other = write(tmp_path / "other", state(0))
    assert find([one, replace(other, tensors=dict(list(other.tensors.items())[::-1]))]) == [[0, 1]]
