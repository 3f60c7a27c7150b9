"""What a job publishes, in whose place, and one process at a time."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from lawa.checkpoints import publish
from lawa.errors import LawaError
from lawa.offline import plan as planning
from lawa.offline.job import Job
from lawa.offline.plan import Mean
from offline import engine
from offline.engine import PATHS
from offline.jobs import (
    SEVERAL,
    check,
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


# ---- outputs


@pytest.mark.parametrize("way", PATHS)
def test_one_average_becomes_the_output_itself(tmp_path: Path, way: str) -> None:
    with engine.path(way):
        assert done(job(tmp_path)) == [("", tmp_path / "out")]
    check(tmp_path / "out", states(), Mean("", (0, 1, 2), None))
    assert sorted(held(tmp_path / "out")) == ["config.json", "manifest.json", "model.safetensors"]
    assert leftovers(tmp_path) == ["out"]


def test_several_become_folders_of_the_output(tmp_path: Path) -> None:
    assert done(job(tmp_path, inputs(tmp_path, means=SEVERAL))) == [(name, tmp_path / "out" / name) for name in "abc"]
    for mean in SEVERAL:
        check(tmp_path / "out" / mean.name, states(), mean)
    assert leftovers(tmp_path) == ["out"]


def test_names_may_have_folders_and_the_outputs_place_is_made(tmp_path: Path) -> None:
    means = [Mean(f"window{k}/step{end}", tuple(range(end - k, end)), None) for k in (1, 2) for end in (2, 3)]
    work = inputs(tmp_path, means=means)
    list(Job(work, tmp_path / "some" / "where" / "out", finish=finish).run(threads=1))
    for mean in means:
        check(tmp_path / "some" / "where" / "out" / mean.name, states(), mean)
    assert leftovers(tmp_path / "some" / "where") == ["out"]


def test_shards_come_with_their_index(tmp_path: Path) -> None:
    work = inputs(tmp_path, shard_bytes=200)
    done(job(tmp_path, work))
    assert (tmp_path / "out" / "model.safetensors.index.json").read_text() == planning.index_json(work)
    check(tmp_path / "out", states(), Mean("", (0, 1, 2), None))


def test_what_finish_writes_is_published_with_the_weights(tmp_path: Path) -> None:
    seen: list[tuple[str, list[str]]] = []

    def look(mean: Mean, folder: Path) -> None:
        seen.append((mean.name, sorted(entry.name for entry in folder.iterdir())))
        assert not (tmp_path / "out" / mean.name).exists()
        finish(mean, folder)

    done(job(tmp_path, inputs(tmp_path, means=SEVERAL), finish=look))
    assert seen == [(name, ["model.safetensors"]) for name in "abc"]


@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize("digests", [True, False])
def test_what_comes_to_disk_and_into_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: bool, digests: bool
) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: flushed.append(os.fstat(fd).st_ino))
    done(job(tmp_path), sync=sync, digests=digests)
    entries = publish.listed(tmp_path / "out")
    assert entries.keys() == {"model.safetensors", "config.json"}
    assert all(("sha256" in entry) == digests for entry in entries.values())
    paths = [tmp_path, tmp_path / "out", *(tmp_path / "out").iterdir()]
    assert set(flushed) == ({path.stat().st_ino for path in paths} if sync else set())


# ---- what is there already


def test_an_existing_output_is_untouched(tmp_path: Path) -> None:
    work = inputs(tmp_path)
    done(job(tmp_path, work))
    before = held(tmp_path / "out")
    for other in (work, inputs(tmp_path, out_dtype="float32")):
        with pytest.raises(LawaError, match=r"out exists already; choose another output, or .* --overwrite"):
            job(tmp_path, other)
    assert held(tmp_path / "out") == before
    assert leftovers(tmp_path) == ["out"]


def test_one_of_several_that_exists_is_named_and_others_in_the_folder_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "out" / "other").mkdir(parents=True)
    (tmp_path / "out" / "file").write_text("mine")
    done(job(tmp_path, inputs(tmp_path, means=SEVERAL[:1])))
    with pytest.raises(LawaError, match=r"out/a exists already"):
        job(tmp_path, inputs(tmp_path, means=SEVERAL))
    done(job(tmp_path, inputs(tmp_path, means=SEVERAL[1:])))
    assert sorted(entry.name for entry in (tmp_path / "out").iterdir()) == ["a", "b", "c", "file", "other"]


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("means", [None, SEVERAL])
def test_a_file_in_the_outputs_place_stays(tmp_path: Path, means: list[Mean] | None, overwrite: bool) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(LawaError, match="out is a file, and the average is a directory"):
        job(tmp_path, inputs(tmp_path, means=means), overwrite=overwrite)
    assert (tmp_path / "out").read_text() == "mine"


def test_overwriting_replaces_the_output_when_its_successor_is_whole(tmp_path: Path) -> None:
    done(job(tmp_path))
    (tmp_path / "out" / "mine.txt").write_text("from before")
    before = held(tmp_path / "out")

    def look(mean: Mean, folder: Path) -> None:
        assert held(tmp_path / "out") == before
        finish(mean, folder)

    work = inputs(tmp_path, means=[Mean("", (0, 1), (0.75, 0.25))])
    assert done(job(tmp_path, work, finish=look, overwrite=True)) == [("", tmp_path / "out")]
    check(tmp_path / "out", states(), work.means[0])
    assert sorted(held(tmp_path / "out")) == ["config.json", "manifest.json", "model.safetensors"]
    assert leftovers(tmp_path) == ["out"]


def test_overwriting_several_replaces_each_in_its_turn(tmp_path: Path) -> None:
    done(job(tmp_path, inputs(tmp_path, means=SEVERAL)))
    (tmp_path / "out" / "other").mkdir()
    before = {mean.name: held(tmp_path / "out" / mean.name) for mean in SEVERAL}
    told = states(seed=50)
    running = job(tmp_path, inputs(tmp_path, told, means=SEVERAL), overwrite=True).run(threads=2)
    for number, mean in enumerate(SEVERAL):
        assert next(running)[0] == mean
        for earlier in SEVERAL[: number + 1]:
            check(tmp_path / "out" / earlier.name, told, earlier)
        for later in SEVERAL[number + 1 :]:
            assert held(tmp_path / "out" / later.name) == before[later.name]
    assert next(running, None) is None
    assert sorted(entry.name for entry in (tmp_path / "out").iterdir()) == ["a", "b", "c", "other"]
    assert leftovers(tmp_path) == ["out"]


def test_overwriting_where_nothing_is(tmp_path: Path) -> None:
    done(job(tmp_path, overwrite=True))
    check(tmp_path / "out", states(), Mean("", (0, 1, 2), None))


@pytest.mark.parametrize("means", [None, SEVERAL])
def test_behind_a_link_the_work_is_done_where_it_points(tmp_path: Path, means: list[Mean] | None) -> None:
    """Perhaps to a larger disk: nothing could be renamed from here to there."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "averages")
    for _ in range(2):
        seen: list[Path] = []

        def look(mean: Mean, folder: Path, seen: list[Path] = seen) -> None:
            seen.append(folder.parent)
            finish(mean, folder)

        work = inputs(tmp_path, means=means)
        done(job(tmp_path, work, finish=look, overwrite=True))
        assert set(seen) == {tmp_path / "disk" / ".averages.averaging"}
        for mean in work.means:
            check(tmp_path / "disk" / "averages" / mean.name, states(), mean)
        assert (tmp_path / "out").is_symlink()


def test_into_the_folder_that_one_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out" / "deep").mkdir(parents=True)
    for folder, place in ((tmp_path / "out", "."), (tmp_path / "out" / "deep", "..")):
        monkeypatch.chdir(folder)
        work = inputs(tmp_path, means=SEVERAL)
        list(Job(work, Path(place), finish=finish, overwrite=True).run(threads=1))
        for mean in SEVERAL:
            check(tmp_path / "out" / mean.name, states(), mean)
        assert leftovers(tmp_path) == ["out"]
        assert sorted(entry.name for entry in (tmp_path / "out").iterdir()) == ["a", "b", "c", "deep"]


def test_an_output_that_appears_while_it_is_made_is_untouched(tmp_path: Path) -> None:
    def appear(mean: Mean, folder: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine.txt").write_text("mine")

    with pytest.raises(LawaError, match="out exists already"):
        done(job(tmp_path, finish=appear))
    assert sorted(held(tmp_path / "out")) == ["mine.txt"]


def test_an_output_that_appears_meanwhile_is_untouched(tmp_path: Path) -> None:
    late = job(tmp_path, inputs(tmp_path, out_dtype="float32"))
    done(job(tmp_path))
    before = held(tmp_path / "out")
    with pytest.raises(LawaError, match="out exists already"):
        done(late)
    assert held(tmp_path / "out") == before
    assert leftovers(tmp_path) == ["out"]


# ---- one at a time


def test_a_second_process_is_refused_and_the_first_not_disturbed(tmp_path: Path) -> None:
    work = inputs(tmp_path, means=SEVERAL)
    running = job(tmp_path, work).run(threads=1)
    next(running)
    for other in (work, inputs(tmp_path, means=SEVERAL[1:])):
        with pytest.raises(LawaError, match=r"another process is writing .*out; wait for it, or choose another"):
            done(job(tmp_path, other))
    assert len(list(running)) == 2
    for mean in SEVERAL:
        check(tmp_path / "out" / mean.name, states(), mean)


def test_a_lock_on_a_directory_that_its_job_has_removed_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one ends between our opening of the directory and our lock."""
    flock = fcntl.flock

    def late(descriptor: int, how: int) -> None:
        (tmp_path / ".out.averaging").rmdir()
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(LawaError, match="another process is writing"):
        done(job(tmp_path))
    monkeypatch.setattr(fcntl, "flock", flock)
    done(job(tmp_path))
