"""Outputs laid out to the byte, items that cover them, and what a plan says of itself."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from lawa.checkpoints.catalog import ITEMSIZE, Catalog, Stored
from lawa.errors import LawaError, UsageError
from lawa.offline import plan
from lawa.offline.execute import lay_out
from lawa.offline.plan import Mean, Plan, index_json, make_plan
from lawa.offline.policy import Matched, Policy, Row
from offline.engine import draws, planned, write


def rows(*told: tuple[str, str, tuple[int, ...]], inputs: int = 2) -> Matched:
    """Of inputs whose files are never read."""
    places = [
        tuple(Stored(Path(f"in{one}"), 1000 * number, dtype, shape) for one in range(inputs))
        for number, (_, dtype, shape) in enumerate(told)
    ]
    return Matched([Row(name, at, "float" in dtype) for (name, dtype, _), at in zip(told, places, strict=True)], {}, [])


def laid_out(matched: Matched, **how: Any) -> Plan:
    inputs = len(matched.rows[0].stored)
    catalogs = [
        Catalog(
            label=f"in{one}",
            directory=None,
            format="hf",
            tensors={row.name: at for row in matched.rows if (at := row.stored[one]) is not None},
        )
        for one in range(inputs)
    ]
    return make_plan(catalogs, matched, how.pop("means", [Mean("", tuple(range(inputs)), None)]), **how)


MIXED = rows(
    ("flag", "bool", (3,)), ("b", "bfloat16", (5,)), ("f", "float32", (2, 2)), ("d", "float64", (3,)),
    ("n", "int64", ()), ("e", "float32", (0, 7)), ("θ", "float16", (1,)),
)  # fmt: skip


# ---- files


def test_a_tensor_begins_at_a_multiple_of_its_elements_size(tmp_path: Path) -> None:
    work = laid_out(MIXED)
    assert all(placed.offset % ITEMSIZE[placed.dtype] == 0 for placed in work.tensors)
    assert {placed.row.name for placed in work.tensors} == {row.name for row in MIXED.rows}
    lay_out(work, tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size == work.files[0].nbytes == work.bytes_written


@pytest.mark.parametrize("shard_bytes", [1, 20, 33, 60, 10**9])
@pytest.mark.parametrize("out_dtype", [None, "float32", "bfloat16", "float64"])
def test_the_real_safetensors_reads_what_was_laid_out(tmp_path: Path, shard_bytes: int, out_dtype: str | None) -> None:
    work = laid_out(MIXED, shard_bytes=shard_bytes, out_dtype=out_dtype)
    lay_out(work, tmp_path)
    found = {}
    for file in work.files:
        with safe_open(tmp_path / file.name, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
            for name in opened.keys():  # noqa: SIM118 (it is no dictionary)
                assert name not in found
                found[name] = opened.get_tensor(name), file.name
    assert {name: (str(tensor.dtype)[6:], tuple(tensor.shape), file) for name, (tensor, file) in found.items()} == {
        row.name: (
            out_dtype if out_dtype and row.averaged else row.newest.dtype,
            row.newest.shape,
            next(placed.file for placed in work.tensors if placed.row is row),
        )
        for row in MIXED.rows
    }


def test_shards_hold_what_they_may_and_are_numbered_as_transformers_does() -> None:
    matched = rows(*((name, "float32", (size,)) for name, size in zip("abcdef", (10, 10, 30, 1, 1, 24), strict=True)))
    work = laid_out(matched, shard_bytes=100)
    assert [[placed.row.name for placed in work.tensors if placed.file == file.name] for file in work.files] == [
        ["a", "b"], ["c"], ["d", "e"], ["f"],
    ]  # fmt: skip
    assert [file.name for file in work.files] == [f"model-{number:05}-of-00004.safetensors" for number in (1, 2, 3, 4)]
    assert index_json(work) == index_json(laid_out(matched, shard_bytes=100))
    index = json.loads(index_json(work) or "")
    assert index == {
        "metadata": {"total_size": 4 * 76},
        "weight_map": {placed.row.name: placed.file for placed in work.tensors},
    }


def test_one_file_has_no_index_and_may_be_full_to_the_byte() -> None:
    matched = rows(("a", "float32", (10,)), ("b", "float32", (15,)))
    assert index_json(laid_out(matched, shard_bytes=100)) is None
    assert len(laid_out(matched, shard_bytes=99).files) == 2


def test_shards_are_cut_by_the_outputs_dtype() -> None:
    matched = rows(("a", "bfloat16", (10,)), ("b", "bfloat16", (10,)))
    assert len(laid_out(matched, shard_bytes=40).files) == 1
    assert len(laid_out(matched, shard_bytes=40, out_dtype="float32").files) == 2


@pytest.mark.parametrize(
    "wrong", [{"accumulate": "bfloat16"}, {"accumulate": "float"}, {"out_dtype": "int8"}, {"out_dtype": "fp32"}]
)
def test_dtypes_that_do_not_serve_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=r"must be (float32 or float64|one of float32)"):
        laid_out(MIXED, **wrong)


# ---- items


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.integers(0, 9), max_size=3), min_size=1, max_size=5), st.integers(1, 50))
def test_items_cover_each_element_of_each_tensor_once(shapes: list[list[int]], item: int) -> None:
    matched = rows(*((f"t{number}", "float32", tuple(shape)) for number, shape in enumerate(shapes)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "ITEM", item)
        work = laid_out(matched, shard_bytes=100)
        covered = [(one.tensor, at) for one in work.items for at in range(one.start, one.stop)]
    assert covered == [(index, at) for index, placed in enumerate(work.tensors) for at in range(placed.row.numel)]
    assert all(0 < one.stop - one.start <= item for one in work.items)


# ---- bytes


def test_bytes_read_are_each_input_tensor_once_and_kept_ones_of_the_latest_alone() -> None:
    matched = rows(("w", "float32", (10,)), ("n", "int64", (3,)), inputs=5)
    means = [Mean("a", (0, 1), None), Mean("b", (1, 3), None), Mean("c", (0, 3), (0.5, 0.5))]
    work = laid_out(matched, means=means)
    assert work.bytes_read == 3 * 40 + 2 * 24, "inputs 0, 1, 3; integers of 1 and 3"
    assert work.bytes_written == 3 * work.files[0].nbytes


# ---- what is kept


@pytest.mark.parametrize("older", [None, ("int64", (4,)), ("int32", (3,))])
def test_a_kept_tensor_that_an_outputs_latest_has_otherwise_is_named_before_any_work(
    older: tuple[str, tuple[int, ...]] | None,
) -> None:
    matched = rows(("w", "float32", (10,)), ("n", "int64", (3,)), inputs=3)
    at = None if older is None else Stored(Path("in1"), 0, *older)
    stored = matched.rows[1].stored
    matched.rows[1] = replace(matched.rows[1], stored=(stored[0], at, stored[2]))
    laid_out(matched, means=[Mean("b", (0, 1, 2), None)])
    with pytest.raises(LawaError, match=r"^in1 has no tensor 'n' as in2 has it, and the output 'a' .*--ignore 'n'"):
        laid_out(matched, means=[Mean("b", (1, 2), None), Mean("a", (0, 1), None)])


# ---- digest


def changed(tmp_path: Path, how: Callable[[list[Path]], None] = lambda files: None, **settings: Any) -> str:
    files = [tmp_path / str(step) / "model.safetensors" for step in range(2)]
    catalogs = [
        write(file.parent, {"w": draws((6,), torch.float32, step), "b": draws((6,), torch.float32, 9)})
        for step, file in enumerate(files)
        if not file.exists()
    ]
    from offline.engine import read

    how(files)
    catalogs = [read(file.parent) for file in files]
    return planned(catalogs, **settings).digest


def test_a_plans_digest_changes_with_all_that_decides_its_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = changed(tmp_path)
    assert changed(tmp_path) == first
    digests = [
        first,
        changed(tmp_path, means=[Mean("", (1, 0), None)]),
        changed(tmp_path, means=[Mean("", (0, 1), (0.5, 0.5))]),
        changed(tmp_path, means=[Mean("", (0, 1), (0.5, 0.25))]),
        changed(tmp_path, means=[Mean("name", (0, 1), None)]),
        changed(tmp_path, means=[Mean("", (0, 1), None), Mean("", (1,), None)]),
        changed(tmp_path, accumulate="float64"),
        changed(tmp_path, out_dtype="bfloat16"),
        changed(tmp_path, shard_bytes=30),
        changed(tmp_path, policy=Policy(latest=("b",))),
        changed(tmp_path, policy=Policy(ignore=("b",))),
        changed(tmp_path, lambda files: os.utime(files[0], ns=(1, 1))),
        changed(tmp_path, lambda files: os.utime(files[1], ns=(1, 1))),
    ]
    monkeypatch.setattr(plan, "ITEM", 3)
    digests.append(changed(tmp_path))
    assert len(set(digests)) == len(digests)
