"""What a checkpoint was read from, as it was before: in place, or put together of all its files."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file

from checkpoints.formats.made import read
from lawa.checkpoints.publish import write_manifest
from lawa.checkpoints.sources import check_unchanged, stamp
from lawa.errors import LawaError


def other_files(directory: Path) -> None:
    """What no tensor is read from; a run removes training/ when it is no longer needed."""
    (directory / "training").mkdir()
    torch.save({"optimizer": 1}, directory / "training" / "optimizer.pt")
    write_manifest(directory / "training")
    (directory / "config.json").write_text("{}")


def test_in_place_it_is_the_files_that_tensors_lie_in(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    torch.save({"optimizer": 1}, tmp_path / "optimizer.pt")
    other_files(tmp_path)
    file = tmp_path / "model.safetensors"
    assert read(tmp_path, tmp_path).sources == {file: (file.stat().st_size, file.stat().st_mtime_ns)}


def test_of_what_was_put_together_it_is_the_files_of_weights(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"model": {"a": torch.ones(2)}}, checkpoint_id=tmp_path / "step1" / "weights", no_dist=True)
    other_files(tmp_path / "step1")
    found = read(tmp_path / "step1", tmp_path)
    assert {file.name for file in found.sources} == {".metadata", "__0_0.distcp"}
    assert all(file.is_relative_to(tmp_path / "scratch0") for file in found.files)
    old = tmp_path / "old.pt"
    torch.save({"a": torch.ones(2)}, old, _use_new_zipfile_serialization=False)
    assert read(old, tmp_path).sources == {old: stamp(old)}


def test_what_changes_or_goes_is_named(tmp_path: Path) -> None:
    old = tmp_path / "old.pt"
    torch.save({"a": torch.ones(2)}, old, _use_new_zipfile_serialization=False)
    found = read(old, tmp_path)
    check_unchanged(found)
    written = old.stat().st_mtime_ns
    os.utime(old, ns=(written, written + 1))
    with pytest.raises(LawaError, match=r"old\.pt was changed or removed while .*old\.pt was averaged; average again"):
        check_unchanged(found)
    os.utime(old, ns=(written, written))
    check_unchanged(found)
    old.unlink()
    with pytest.raises(LawaError, match="was changed or removed"):
        check_unchanged(found)


def test_a_change_while_it_is_read_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "old.pt"
    torch.save({"a": torch.ones(2)}, old, _use_new_zipfile_serialization=False)
    load = torch.load

    def late(file: Path, **how: object) -> object:
        loaded = load(file, **how)  # type: ignore[arg-type]
        os.utime(file, ns=(1, 1))
        return loaded

    monkeypatch.setattr(torch, "load", late)
    with pytest.raises(LawaError, match="was changed"):
        check_unchanged(read(old, tmp_path))
