"""Weights as torch DCP instead of safetensors: read back where that is asked for, one sentence where it fails."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import Tensor

import lawa
from lawa.errors import LawaError
from lawa.offline.to_dcp import to_dcp

STATE = {
    "a": torch.arange(1000.0), "b": torch.tensor([1.0, float("nan")]).bfloat16(), "n": torch.tensor(7),
    "e": torch.ones(0, 3), "flags": torch.tensor([True, False]),
}  # fmt: skip
FILES = ["model-1.safetensors", "model-2.safetensors"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file({"a": STATE["a"]}, tmp_path / FILES[0])
    save_file({name: tensor for name, tensor in STATE.items() if name != "a"}, tmp_path / FILES[1])
    return tmp_path


@contextmanager
def full() -> Iterator[None]:
    """No file may grow beyond 1,000 bytes; undone before the test ends, whose own output may be a longer file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def other(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """DCP writes another value of one tensor."""
    save = dcp.save

    def wrong(state: dict[str, dict[str, Tensor]], **how: Any) -> None:
        tensor = state["model"][name].clone()
        tensor.reshape(-1)[-1] = 3
        save({"model": {**state["model"], name: tensor}}, **how)

    monkeypatch.setattr(dcp, "save", wrong)


def test_what_was_written_is_what_is_read_back(folder: Path) -> None:
    to_dcp(folder, FILES, verify=True)
    assert [entry.name for entry in folder.iterdir()] == ["weights"]


@pytest.mark.parametrize("name", ["a", "b", "n"])
def test_another_value_is_found_where_that_is_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    other(name, monkeypatch)
    with pytest.raises(LawaError, match=f"tensor '{name}' of .*weights has other bytes than were written; do not use"):
        to_dcp(folder, FILES, verify=True)
    to_dcp(folder, FILES)


def test_a_file_that_cannot_be_read_back_is_one_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = dcp.save

    def cut(state: dict[str, Any], *, checkpoint_id: Path, **how: Any) -> None:
        save(state, checkpoint_id=checkpoint_id, **how)
        (checkpoint_id / "__0_0.distcp").write_bytes(b"")

    monkeypatch.setattr(dcp, "save", cut)
    with pytest.raises(LawaError, match=r"tensor 'a' of .*weights cannot be read back \(.*\); average again"):
        to_dcp(folder, FILES, verify=True)


def test_without_room_it_is_one_sentence(folder: Path) -> None:
    refused = pytest.raises(
        LawaError, match=r"the weights cannot be written as torch DCP in \S+ \(.*\); make room there"
    )
    with full(), refused:
        to_dcp(folder, FILES)


@pytest.mark.parametrize("failed", [RuntimeError("at fault"), dcp.CheckpointException("at fault", {})])
def test_an_average_that_cannot_be_converted_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, failed: BaseException
) -> None:
    def fail(*at: Any, **how: Any) -> None:
        raise failed

    monkeypatch.setattr(dcp, "save", fail)
    with pytest.raises(LawaError, match="cannot be written as torch DCP"):
        lawa.average(folder / FILES[0], output=folder / "out", format="dcp")
    assert sorted(entry.name for entry in folder.iterdir()) == FILES


def test_verifying_an_average_looks_at_its_dcp(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other("a", monkeypatch)
    with pytest.raises(LawaError, match=r"tensor 'a' of .*weights has other bytes"):
        lawa.average(folder / FILES[0], output=folder / "out", format="dcp", verify=True)
    assert sorted(entry.name for entry in folder.iterdir()) == FILES


def test_its_card_says_how_to_load_dcp(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "tiny"}')
    said = {
        form: (lawa.average(folder / FILES[0], output=folder / form, format=form) / "README.md").read_text()
        for form in ("hf", "dcp")
    }
    for word in ("from_pretrained", "library_name"):
        assert (word in said["hf"], word in said["dcp"]) == (True, False)
    assert ("dcp.load(" in said["hf"], "dcp.load(" in said["dcp"]) == (False, True)
