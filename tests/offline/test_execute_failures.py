"""What goes wrong while items are done is one sentence that names it; what was open is closed."""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lawa.errors import LawaError, NonFiniteAverage
from lawa.offline import execute, plan
from lawa.offline.execute import Opened, opened, run
from lawa.offline.plan import Mean
from offline import engine
from offline.engine import DTYPES, PATHS, carry_out, draws, planned, write

# ---- what goes wrong


def broken(tmp_path: Path, *values: float, dtype: torch.dtype = torch.float32, **how: Any) -> plan.Plan:
    """Three checkpoints of which the middle one's tensor "b" ends in `values`."""
    catalogs = []
    for step in range(3):
        state = {"a": draws((50,), dtype, step), "b": draws((50,), dtype, 10 + step)}
        if step == 1:
            state["b"][-len(values) :] = torch.tensor(values, dtype=dtype)
        catalogs.append(write(tmp_path / f"step{step}", state))
    return planned(catalogs, **how)


@pytest.mark.parametrize("way", PATHS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_value_that_is_not_finite_is_named_by_checkpoint_and_tensor(
    tmp_path: Path, value: float, dtype: torch.dtype, way: str
) -> None:
    work = broken(tmp_path, value, dtype=dtype)
    with engine.path(way), pytest.raises(NonFiniteAverage, match=r"tensor 'b' of step1 has values that are not finite"):
        carry_out(work, tmp_path / "out")
    with engine.path(way):
        (found,) = carry_out(work, tmp_path / "allowed", allow_non_finite=True)
    assert found["b"].isfinite().tolist() == [True] * 49 + [False]
    assert found["a"].isfinite().all()


@pytest.mark.parametrize("way", PATHS)
def test_a_window_without_the_checkpoint_is_finite(tmp_path: Path, way: str) -> None:
    work = broken(tmp_path, float("nan"), means=[Mean("a", (0, 2), None), Mean("b", (2,), (1.0,))])
    with engine.path(way):
        carry_out(work, tmp_path / "out")


@pytest.mark.parametrize("way", PATHS)
@pytest.mark.parametrize(("out", "value"), [("float16", 3e5), ("bfloat16", 3.4028e38), ("float32", 3.4e38)])
def test_an_average_that_overflows_its_output_is_named(tmp_path: Path, out: str, value: float, way: str) -> None:
    catalogs = [write(tmp_path / f"step{step}", {"huge": torch.full((3,), value)}) for step in range(3)]
    with engine.path(way), pytest.raises(NonFiniteAverage, match=rf"average of tensor 'huge' .* overflow.* {out}"):
        carry_out(planned(catalogs, out_dtype=out), tmp_path / "out")


@pytest.mark.parametrize("way", PATHS)
@pytest.mark.parametrize("tensor", ["w", "count"])
def test_an_input_that_is_cut_off_meanwhile_is_named(tmp_path: Path, tensor: str, way: str) -> None:
    told = [{"w": draws((500,), torch.float32, step), "count": torch.arange(500)} for step in range(3)]
    catalogs = [
        write(tmp_path / f"step{step}", {tensor: state[tensor], "x": torch.ones(4)}) for step, state in enumerate(told)
    ]
    work = planned(catalogs)
    file = catalogs[2].tensors[tensor].file
    os.truncate(file, catalogs[2].tensors[tensor].offset + 1001)
    with engine.path(way), pytest.raises(LawaError, match=r"step2/model.safetensors: it ends before its tensors do"):
        carry_out(work, tmp_path / "out")


@pytest.mark.parametrize("way", PATHS)
def test_an_input_that_is_gone_is_named(tmp_path: Path, way: str) -> None:
    work = broken(tmp_path, 1.0)
    (tmp_path / "step1" / "model.safetensors").unlink()
    with engine.path(way), pytest.raises(LawaError, match=r"step1/model.safetensors cannot be opened \(No such file"):
        carry_out(work, tmp_path / "out")


@pytest.mark.parametrize("way", PATHS)
@pytest.mark.parametrize("tensor", ["w", "count"])
def test_a_directory_in_an_inputs_place_cannot_be_read(tmp_path: Path, tensor: str, way: str) -> None:
    """The system's own error, from a read."""
    told = {"w": draws((500,), torch.float32, 0), "count": torch.arange(500)}
    catalogs = [write(tmp_path / f"step{step}", {"x": torch.ones(2), tensor: told[tensor]}) for step in range(2)]
    work = planned(catalogs)
    file = catalogs[1].tensors["x"].file
    file.unlink()
    file.mkdir()
    with engine.path(way), pytest.raises(LawaError, match=r"step1/model.safetensors cannot be read \(Is a directory\)"):
        carry_out(work, tmp_path / "out")


@pytest.mark.parametrize("way", PATHS)
@pytest.mark.parametrize("tensor", ["w", "count"])
def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tensor: str, way: str) -> None:
    """/dev/full, to which every write fails as to a disk without room."""
    told = {"w": draws((500,), torch.float32, 0), "count": torch.arange(500)}
    catalogs = [write(tmp_path / f"step{step}", {tensor: told[tensor], "x": torch.ones(2)}) for step in range(2)]
    full = os.open("/dev/full", os.O_RDWR)
    monkeypatch.setattr(Opened, "output", lambda *at: full)
    with (
        engine.path(way),
        pytest.raises(LawaError, match=r"output0/model.safetensors cannot be written \(No space left"),
    ):
        carry_out(planned(catalogs), tmp_path / "out")
    os.close(full)


# ---- threads


def test_descriptors_are_closed_and_the_limit_given_back(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd")), resource.getrlimit(resource.RLIMIT_NOFILE)
    work = broken(tmp_path, float("nan"))
    with pytest.raises(NonFiniteAverage):
        carry_out(work, tmp_path / "out")
    carry_out(work, tmp_path / "again", allow_non_finite=True)
    assert (set(os.listdir("/proc/self/fd")), resource.getrlimit(resource.RLIMIT_NOFILE)) == before


def test_more_files_than_the_soft_limit_are_open_at_once(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    here = max(map(int, os.listdir("/proc/self/fd")))
    files = [tmp_path / str(number) for number in range(40)]
    for file in files:
        file.touch()
    resource.setrlimit(resource.RLIMIT_NOFILE, (here + 20, hard))
    try:
        with opened([]) as files_open:
            assert len({files_open.input(file) for file in files}) == 40
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (here + 20, hard), "given back"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_thread_that_cannot_start_ends_the_others_before_descriptors_are_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "ITEM", 1)
    work = broken(tmp_path, 1.0)
    found: list[bool] = []
    began, refused = threading.Event(), threading.Event()
    threads: list[threading.Thread] = []

    class Thread(threading.Thread):
        def start(self) -> None:
            if threads:
                assert began.wait(5)
                refused.set()
                raise RuntimeError("can't start new thread")
            threads.append(self)
            super().start()

    def slow(files: Opened, where: str) -> None:
        descriptor = files.input(work.catalogs[0].files[0])
        began.set()
        refused.wait(5)
        time.sleep(0.05)
        found.append(len(os.pread(descriptor, 8, 0)) == 8)

    monkeypatch.setattr(execute.threading, "Thread", Thread)
    at_work(monkeypatch, slow)
    with pytest.raises(RuntimeError, match="can't start"):
        run(work, [tmp_path], range(len(work.items)), threads=3, done=lambda index: None)
    assert found == [True], "one item of the thread that was started, and its file was open"


def at_work(monkeypatch: pytest.MonkeyPatch, work: Callable[[execute.Opened, str], None]) -> None:
    """In place of an item's work: `work`, told which thread it is in."""
    names: dict[int, str] = {threading.get_ident(): "main"}
    monkeypatch.setattr(
        execute, "do", lambda plan, item, files, **how: work(files, names.get(threading.get_ident(), "other"))
    )


def test_one_failure_ends_the_others_after_their_item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "ITEM", 1)
    work = broken(tmp_path, 1.0)
    done: list[int] = []
    began = threading.Event()

    def fail(files: Opened, where: str) -> None:
        if where == "other":
            began.set()
            raise LawaError("at fault")
        began.wait(5)
        time.sleep(0.001)

    at_work(monkeypatch, fail)
    with pytest.raises(LawaError, match="at fault"):
        run(work, [tmp_path], range(len(work.items)), threads=2, done=done.append)
    assert len(done) < len(work.items)


def test_descriptors_stay_open_until_every_thread_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the main thread waits: else the others would write into whatever gets these descriptors next."""
    monkeypatch.setattr(plan, "ITEM", 1)
    work = broken(tmp_path, 1.0)
    found: list[bool] = []
    interrupted = threading.Event()

    class Thread(threading.Thread):
        def join(self, timeout: float | None = None) -> None:
            if not interrupted.is_set():
                interrupted.set()
                raise KeyboardInterrupt
            super().join(timeout)

    def slow(files: Opened, where: str) -> None:
        if where == "other":
            descriptor = files.input(work.catalogs[0].files[0])
            interrupted.wait(5)
            time.sleep(0.05)
            found.append(len(os.pread(descriptor, 8, 0)) == 8)

    monkeypatch.setattr(execute.threading, "Thread", Thread)
    at_work(monkeypatch, slow)
    with pytest.raises(KeyboardInterrupt):
        run(work, [tmp_path], range(len(work.items)), threads=2, done=lambda index: None)
    assert found
    assert all(found)
