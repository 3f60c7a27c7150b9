"""A job that fails says why in one sentence, leaves nothing, and replaces nothing."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lawa.checkpoints import publish
from lawa.errors import LawaError, NonFiniteAverage
from lawa.offline import job as module
from lawa.offline import plan as planning
from lawa.offline.job import Job
from lawa.offline.plan import Mean
from offline import engine
from offline.engine import PATHS
from offline.jobs import (
    done,
    finish,
    held,
    inputs,
    job,
    leftovers,
    states,
)


@pytest.fixture(autouse=True)
def small_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "ITEM", 10)


@contextmanager
def limits_undone() -> Iterator[Callable[[int], None]]:
    """Give what limits every file to so many bytes: what a write meets then is as real as a full disk's error.

    Undone before the test ends: the tests' own output may be a longer file.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda nbytes: resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("way", PATHS)
@pytest.mark.parametrize("when", ["laying out", "averaging", "copying"])
def test_without_room_it_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str, way: str
) -> None:
    """The file may not be as long as it must be; or what has been laid out may not be written."""
    work = inputs(tmp_path)
    limit = {"laying out": 200, "copying": work.tensors[0].offset, "averaging": work.tensors[1].offset}[when]
    lay_out = module.lay_out

    def limited(*at: Any) -> None:
        if when != "laying out":
            lay_out(*at)
        at_most(limit)
        if when == "laying out":
            lay_out(*at)

    monkeypatch.setattr(module, "lay_out", limited)
    refused = pytest.raises(LawaError, match=r"\S+ cannot be written \(File too large\); make room there")
    with engine.path(way), limits_undone() as at_most, refused:
        done(job(tmp_path, work))
    assert leftovers(tmp_path) == []


def test_without_room_for_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = inputs(tmp_path)
    monkeypatch.setattr(module, "JOURNAL", "/dev/full")
    monkeypatch.setattr(module, "_items", lambda journal: set())
    with pytest.raises(LawaError, match=r"out cannot be written \(No space left on device\); make room there"):
        done(job(tmp_path, work))
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("failed", [OSError(errno.ENOSPC, "No space left on device"), LawaError("at fault")])
def test_what_fails_at_the_end_leaves_nothing_and_replaces_nothing(
    tmp_path: Path, failed: Exception, overwrite: bool
) -> None:
    if overwrite:
        done(job(tmp_path))
    before = held(tmp_path / "out")

    def fail(mean: Mean, folder: Path) -> None:
        raise failed

    with pytest.raises(LawaError, match=r"No space left on device|at fault"):
        done(job(tmp_path, inputs(tmp_path, out_dtype="float32"), finish=fail, overwrite=overwrite))
    assert held(tmp_path / "out") == before
    assert leftovers(tmp_path) == (["out"] if overwrite else [])


def test_the_old_output_stays_where_the_manifest_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done(job(tmp_path))
    before = held(tmp_path / "out")

    def full(*at: Any, **how: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(publish, "write_manifest", full)
    with pytest.raises(LawaError, match=r"out cannot be written \(No space left"):
        done(job(tmp_path, inputs(tmp_path, out_dtype="float32"), overwrite=True))
    assert held(tmp_path / "out") == before
    assert leftovers(tmp_path) == ["out"]


@pytest.mark.parametrize("failed", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_the_old_output_comes_back_where_the_new_one_cannot_be_moved_to_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failed: BaseException
) -> None:
    done(job(tmp_path))
    before = held(tmp_path / "out")
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name == "average":
            raise failed
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises((LawaError, KeyboardInterrupt)):
        done(job(tmp_path, inputs(tmp_path, out_dtype="float32"), overwrite=True))
    assert held(tmp_path / "out") == before
    assert leftovers(tmp_path) == (["out"] if isinstance(failed, OSError) else [".out.averaging", "out"])


def test_what_cannot_be_put_back_is_named_and_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done(job(tmp_path))
    before = held(tmp_path / "out")
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if target == tmp_path / "out":
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(LawaError, match=r"what was at \S+/out is at \S+/replaced/out, and cannot be put back \(Input"):
        done(job(tmp_path, inputs(tmp_path, out_dtype="float32"), overwrite=True))
    assert held(tmp_path / ".out.averaging" / "replaced" / "out") == before


@pytest.mark.parametrize("how", ["rewritten", "touched", "removed"])
def test_an_input_that_changes_while_it_is_averaged_is_named_and_nothing_published(tmp_path: Path, how: str) -> None:
    work = inputs(tmp_path)
    file = tmp_path / "step1" / "model.safetensors"

    calls: list[int] = []

    def change(elements: int) -> None:
        calls.append(elements)
        if sum(calls) < 95 + 7:
            return
        if how == "rewritten":
            file.write_bytes(file.read_bytes()[:-1] + b"\x00")
        elif how == "touched":
            os.utime(file, ns=(1, 1))
        else:
            file.unlink()

    with pytest.raises(LawaError, match=r"step1/model.safetensors was changed or removed while step1 was averaged"):
        list(job(tmp_path, work).run(threads=1, progress=change))
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("overwrite", [True, False])
def test_an_average_that_is_not_finite_leaves_nothing_and_replaces_nothing(tmp_path: Path, overwrite: bool) -> None:
    if overwrite:
        done(job(tmp_path))
    before = held(tmp_path / "out")
    told = states()
    told[2]["w"][50] = float("inf")
    with pytest.raises(NonFiniteAverage, match="tensor 'w' of step2"):
        done(job(tmp_path, inputs(tmp_path, told), overwrite=overwrite))
    assert held(tmp_path / "out") == before
    assert leftovers(tmp_path) == (["out"] if overwrite else [])


def test_an_output_where_none_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "out", Path("/proc/self/out")):
        with pytest.raises(LawaError, match=r"\.out\.averaging cannot be made \(.*\); choose an output in a folder"):
            list(Job(inputs(tmp_path), place, finish=finish).run(threads=1))
