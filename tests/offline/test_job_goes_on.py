"""A job that was killed leaves nothing or a whole output, and goes on where it was."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from lawa.checkpoints import publish
from lawa.cli import main
from lawa.errors import LawaError, NonFiniteAverage
from lawa.offline import execute
from lawa.offline import job as module
from lawa.offline import plan as planning
from lawa.offline.job import _items
from lawa.offline.plan import Mean
from offline import job_process
from offline.engine import draws, loaded, same, twin, write
from offline.jobs import (
    SEVERAL,
    check,
    done,
    elements_done,
    held,
    inputs,
    interrupted,
    job,
    leftovers,
    states,
    stop_after,
)


@pytest.fixture(autouse=True)
def small_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "ITEM", 10)


@pytest.mark.parametrize("means", [None, SEVERAL])
@pytest.mark.parametrize("items", [1, 4, 11])
def test_an_interrupted_job_goes_on_where_it_was(tmp_path: Path, items: int, means: list[Mean] | None) -> None:
    work = inputs(tmp_path, means=means)
    interrupted(tmp_path, work, items)
    assert leftovers(tmp_path) == [".out.averaging"]
    finished = sum(item.stop - item.start for item in work.items[:items])
    assert elements_done(job(tmp_path, work)) == 95 + 7 - finished
    for mean in work.means:
        check(tmp_path / "out" / mean.name, states(), mean)
    assert leftovers(tmp_path) == ["out"]


def test_and_again_and_again(tmp_path: Path) -> None:
    work = inputs(tmp_path, means=SEVERAL)
    for _ in range(len(work.items)):
        interrupted(tmp_path, work, 1)
    assert elements_done(job(tmp_path, work)) == 0
    for mean in SEVERAL:
        check(tmp_path / "out" / mean.name, states(), mean)


def test_what_was_done_is_not_done_again(tmp_path: Path) -> None:
    """The journal is believed: bytes put in a done item's place stay, in another's they do not."""
    work = inputs(tmp_path)
    interrupted(tmp_path, work, 3)
    file = tmp_path / ".out.averaging" / "average" / "model.safetensors"
    placed = next(placed for placed in work.tensors if placed.row.name == "n")
    with file.open("r+b") as opened:
        opened.seek(work.tensors[0].offset)
        opened.write(b"\x01")
        opened.seek(work.tensors[-1].offset + 2 * 94)
        opened.write(b"\x01")
    assert placed.offset == work.tensors[0].offset, "integers come first: they are the widest"
    done(job(tmp_path, work))
    found = loaded(tmp_path / "out")
    assert found["n"][0] == 1
    assert same(found["w"], twin([state["w"] for state in states()], None, torch.bfloat16))


@pytest.mark.parametrize(
    "change",
    ["touched", "rewritten", "coefficients", "dtype", "machine", "settings", "damaged", "no job.json"],
)
def test_a_job_that_is_another_one_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    interrupted(tmp_path, inputs(tmp_path), 6)
    told, mean = states(), Mean("", (0, 1, 2), None)
    root = tmp_path / ".out.averaging"
    (root / "foreign").mkdir()
    (root / "foreign.txt").write_text("")
    if change == "touched":
        os.utime(tmp_path / "step1" / "model.safetensors", ns=(1, 1))
    elif change == "rewritten":
        told = states(seed=9)
    elif change == "coefficients":
        mean = Mean("", (0, 1, 2), (0.5, 0.25, 0.25))
    elif change == "machine":
        monkeypatch.setattr(module, "_since_start", lambda: "started anew")
    elif change == "damaged":
        (root / "job.json").write_text('{"plan": ')
    elif change == "no job.json":
        (root / "job.json").unlink()
    work = inputs(tmp_path, told, means=[mean], out_dtype="bfloat16")
    if change == "dtype":
        work = inputs(tmp_path, means=[mean], out_dtype="float32")
    settings = {"allow_non_finite": True} if change == "settings" else {}
    assert elements_done(job(tmp_path, work), **settings) == 95 + 7
    assert leftovers(tmp_path) == ["out"]
    if change != "dtype":
        check(tmp_path / "out", told, mean)


def test_what_was_allowed_before_is_not_allowed_now(tmp_path: Path) -> None:
    told = states()
    told[1]["w"][0] = float("nan")
    work = inputs(tmp_path, told)
    interrupted(tmp_path, work, len(work.items), allow_non_finite=True)
    with pytest.raises(NonFiniteAverage, match="tensor 'w' of step1"):
        done(job(tmp_path, work))
    assert leftovers(tmp_path) == []


def test_a_journal_is_whole_lines_and_others_may_follow(tmp_path: Path) -> None:
    """A kill in the middle of "12" leaves "1"; with a 5 after it, it would be item 15."""
    journal = tmp_path / "journal"
    assert _items(journal) == set()
    for content, whole in ((b"", b""), (b"1", b""), (b"0\n1", b"0\n"), (b"0\n12\n", b"0\n12\n"), (b"7\n\n3", b"7\n\n")):
        journal.write_bytes(content)
        assert _items(journal) == {int(line) for line in whole.split()}
        assert journal.read_bytes() == whole


def test_a_caller_who_leaves_early_can_come_back(tmp_path: Path) -> None:
    work = inputs(tmp_path, means=SEVERAL)
    running = job(tmp_path, work).run(threads=2)
    assert next(running)[0].name == "a"
    running.close()
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["a"]
    published = held(tmp_path / "out" / "a")
    again = job(tmp_path, work)
    assert again.left(False) == SEVERAL[1:], "room is needed for these alone"
    assert again.left(True) == SEVERAL, "another job writes all of them"
    assert elements_done(again) == 0
    assert held(tmp_path / "out" / "a") == published, "it is not published again"
    for mean in SEVERAL:
        check(tmp_path / "out" / mean.name, states(), mean)


@pytest.mark.parametrize("moment", ["before", "between", "after"])
def test_killed_while_the_old_output_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """Before, between and after the two renames that do it, of the first of two outputs."""
    done(job(tmp_path, inputs(tmp_path, means=SEVERAL[:2])))
    told = states(seed=70)
    work = inputs(tmp_path, told, means=SEVERAL[:2])
    rename, calls = Path.rename, []

    def killed(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) >= {"before": 1, "between": 2, "after": 3}[moment]:  # what is killed puts nothing back
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            done(job(tmp_path, work, overwrite=True))
    found = tmp_path / "out" / "a"
    assert found.exists() == (moment != "between")
    check(tmp_path / "out" / "b", states(), SEVERAL[1])
    if found.exists():
        check(found, states() if moment == "before" else told, SEVERAL[0])
    assert elements_done(job(tmp_path, work, overwrite=True)) == 0
    for mean in SEVERAL[:2]:
        check(tmp_path / "out" / mean.name, told, mean)
    assert leftovers(tmp_path) == ["out"]


@pytest.mark.parametrize("means", [None, [Mean("window2/step3", (1, 2), None)]])
@pytest.mark.parametrize("then", ["another plan", "without overwriting", "one that fails"])
def test_killed_between_the_renames_the_old_output_comes_back_whatever_is_done_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, means: list[Mean] | None, then: str
) -> None:
    work = inputs(tmp_path, means=means)
    target = tmp_path / "out" / work.means[0].name
    done(job(tmp_path, work))
    before = held(target)
    rename, calls = Path.rename, []

    def killed(self: Path, to: Path) -> Path:
        calls.append(self)
        if len(calls) >= 2:
            raise KeyboardInterrupt
        return rename(self, to)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            done(job(tmp_path, inputs(tmp_path, means=means, out_dtype="float32"), overwrite=True))
    assert not target.exists()
    other = inputs(tmp_path, means=means, out_dtype="float64")
    if then == "without overwriting":
        with pytest.raises(LawaError, match=f"{target} exists already"):
            done(job(tmp_path, other))
    else:

        def finish(mean: Mean, folder: Path) -> None:
            assert held(target) == before
            raise LawaError("at fault") if then == "one that fails" else KeyboardInterrupt

        with pytest.raises((LawaError, KeyboardInterrupt)):
            done(job(tmp_path, other, overwrite=True, finish=finish))
    assert held(target) == before


def test_the_progress_of_a_job_that_goes_on_begins_where_it_is(tmp_path: Path) -> None:
    work = inputs(tmp_path)
    interrupted(tmp_path, work, 4)
    told: list[int] = []
    done(job(tmp_path, work), progress=told.append)
    assert told[0] == sum(item.stop - item.start for item in work.items[:4])
    assert sum(told) == 95 + 7


def test_who_is_interrupted_is_told_the_way_on(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt, match=r"kept in .*/\.out\.averaging, and the same command goes on"):
        done(job(tmp_path), progress=stop_after(1))


def test_killed_before_the_old_output_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its successor is in its place; the next one's must find room aside."""
    done(job(tmp_path, inputs(tmp_path, means=SEVERAL)))
    told = states(seed=70)
    work = inputs(tmp_path, told, means=SEVERAL)
    rmtree = shutil.rmtree

    def killed(folder: Path, **how: Any) -> None:
        if folder.name == "replaced" and folder.exists():
            raise KeyboardInterrupt
        rmtree(folder, **how)

    for _ in SEVERAL:
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", killed)
            with pytest.raises(KeyboardInterrupt):
                done(job(tmp_path, work, overwrite=True))
        check(tmp_path / "out" / "a", told, SEVERAL[0])
    done(job(tmp_path, work, overwrite=True))
    for mean in SEVERAL:
        check(tmp_path / "out" / mean.name, told, mean)
    assert leftovers(tmp_path) == ["out"]


def test_an_old_output_that_comes_back_is_not_taken_for_its_successor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the old one was removed; then somebody removed the new one."""
    done(job(tmp_path, inputs(tmp_path)))
    told = states(seed=70)
    work = inputs(tmp_path, told)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *at, **how: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            done(job(tmp_path, work, overwrite=True))
    shutil.rmtree(tmp_path / "out")
    done(job(tmp_path, work, overwrite=True))
    check(tmp_path / "out", told, work.means[0])
    assert leftovers(tmp_path) == ["out"]


def test_ctrl_c_on_the_command_line_says_the_way_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*at: Any, **how: Any) -> None:
        raise KeyboardInterrupt

    inputs(tmp_path)
    monkeypatch.setattr(execute, "do", interrupt)
    command = ["average", str(tmp_path / "step0"), str(tmp_path / "step1"), "--output", str(tmp_path / "out")]
    assert main(command) == 130
    assert "lawa average: interrupted; what is done is kept in" in capsys.readouterr().err


def test_killed_between_the_last_rename_and_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = inputs(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *at, **how: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            done(job(tmp_path, work))
    assert leftovers(tmp_path) == [".out.averaging", "out"]
    published = held(tmp_path / "out")
    assert done(job(tmp_path, work)) == [("", tmp_path / "out")]
    assert held(tmp_path / "out") == published
    assert leftovers(tmp_path) == ["out"]


def test_a_published_output_that_was_removed_since_is_made_again(tmp_path: Path) -> None:
    work = inputs(tmp_path, means=SEVERAL)
    running = job(tmp_path, work).run(threads=1)
    next(running)
    running.close()
    shutil.rmtree(tmp_path / "out")
    done(job(tmp_path, work))
    for mean in SEVERAL:
        check(tmp_path / "out" / mean.name, states(), mean)


def test_killed_when_the_weights_had_been_turned_into_other_files(tmp_path: Path) -> None:
    """As for torch DCP: they are not there to be finished once more."""
    work = inputs(tmp_path)

    def turn(mean: Mean, folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        done(job(tmp_path, work, finish=turn))
    done(job(tmp_path, work))
    check(tmp_path / "out", states(), work.means[0])


# ---- kills


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["single", "several", "overwrite"])
def test_killed_at_random_moments_it_leaves_nothing_or_a_whole_output(tmp_path: Path, kind: str) -> None:
    """At least twelve times each; then it goes on, and ends in the bits of an undisturbed job."""
    told = [
        {f"t{number}": draws((1500,), torch.bfloat16, 10 * step + number) for number in range(6)} for step in range(3)
    ]
    folders = [tmp_path / f"step{step}" for step in range(3)]
    for folder, state in zip(folders, told, strict=True):
        write(folder, state)
    expected = job_process.planned(kind, folders).means
    output = tmp_path / "out"
    draw = random.Random(kind)

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, str(Path(job_process.__file__)), str(output), kind, *map(str, folders)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        assert child.stdout.readline() == "begun\n"
        return child

    bits = {
        (mean.name, name): twin([told[index][name] for index in mean.inputs], mean.coefficients, torch.bfloat16)
        for mean in expected
        for name in told[0]
    }

    def whole(place: Path, mean: Mean) -> bool:
        publish.verify(place)
        found = loaded(place)
        equal = all(same(found[name], bits[mean.name, name]) for name in told[0])
        return equal and (place / "config.json").read_text() == f"{mean}"

    def old() -> None:
        shutil.rmtree(output, ignore_errors=True)
        if kind == "overwrite":
            with publish.publish(output) as partial:
                (partial / "old.txt").write_text("old")

    old()
    began = time.monotonic()
    with start() as child:
        assert child.stdout is not None
        child.stdout.read()
    lasts = time.monotonic() - began
    assert child.returncode == 0
    assert all(whole(output / mean.name, mean) for mean in expected)
    old()
    kills = finished = partly = 0
    while kills < 12 or not finished:
        assert kills < 200
        with start() as child:
            time.sleep(draw.uniform(0, lasts / 2))
            child.send_signal(signal.SIGKILL)
        complete = 0
        for mean in expected:
            place = output / mean.name
            if kind == "overwrite" and (place / "old.txt").exists():
                publish.verify(place)
            elif place.exists():
                assert whole(place, mean)
                complete += 1
            elif kind == "overwrite":
                assert (tmp_path / ".out.averaging" / "replaced" / "out" / "old.txt").exists()
        kills += child.returncode == -signal.SIGKILL
        partly += (tmp_path / ".out.averaging" / "journal").exists()
        if complete == len(expected) and not (tmp_path / ".out.averaging").exists():
            finished += 1
            old()
    assert partly
    assert leftovers(tmp_path) in ([], ["out"], [".out.averaging"], [".out.averaging", "out"])
