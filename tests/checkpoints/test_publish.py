"""A published directory is whole or absent."""

import json
import os
import shutil
from pathlib import Path

import pytest

from lawa.checkpoints.publish import (
    begin,
    complete,
    hidden,
    is_published,
    link,
    listed,
    publish,
    remove,
    sha256,
    sweep,
    verify,
    write_manifest,
)
from lawa.errors import LawaError


def write(path, text="content"):
    with publish(path) as partial:
        (partial / "a.txt").write_text(text)
        (partial / "folder").mkdir()
        (partial / "folder" / "b.txt").write_text(text)


def test_nothing_is_there_until_everything_is(tmp_path):
    with publish(tmp_path / "out") as partial:
        (partial / "a.txt").write_text("content")
        assert not (tmp_path / "out").exists()
        assert not is_published(partial)
    assert is_published(tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]
    verify(tmp_path / "out")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_nothing(tmp_path, error):
    def fail():
        with publish(tmp_path / "out") as partial:
            (partial / "a.txt").write_text("content")
            raise error

    with pytest.raises(error):
        fail()
    assert os.listdir(tmp_path) == []


def test_what_exists_is_refused_and_untouched(tmp_path):
    write(tmp_path / "out", "first")
    with pytest.raises(LawaError, match="exists already"):
        write(tmp_path / "out", "second")
    assert (tmp_path / "out" / "a.txt").read_text() == "first"
    verify(tmp_path / "out")


def test_damage_is_named(tmp_path):
    write(tmp_path / "out")
    (tmp_path / "out" / "folder" / "b.txt").write_text("c0ntent")
    with pytest.raises(LawaError, match=r"folder/b\.txt differs from what was written"):
        verify(tmp_path / "out")
    verify(tmp_path / "out", digests=False)
    (tmp_path / "out" / "folder" / "b.txt").write_text("short")
    with pytest.raises(LawaError, match="has 5 bytes where 7 were written"):
        verify(tmp_path / "out", digests=False)
    (tmp_path / "out" / "folder" / "b.txt").unlink()
    with pytest.raises(LawaError, match=r"b\.txt is missing"):
        verify(tmp_path / "out", digests=False)


def test_a_directory_without_a_manifest_does_not_exist(tmp_path):
    (tmp_path / "out").mkdir()
    assert not is_published(tmp_path / "out")
    with pytest.raises(LawaError, match="never finished"):
        verify(tmp_path / "out")


def test_a_folder_with_its_own_manifest_can_be_removed_by_itself(tmp_path):
    with publish(tmp_path / "out") as partial:
        (partial / "weights").write_text("w")
        (partial / "training").mkdir()
        (partial / "training" / "state").write_text("s")
        write_manifest(partial / "training")
    verify(tmp_path / "out" / "training")
    remove(tmp_path / "out" / "training")
    assert sorted(os.listdir(tmp_path / "out")) == ["manifest.json", "weights"]
    verify(tmp_path / "out")


def test_leftovers_of_killed_writers_are_swept(tmp_path):
    write(tmp_path / "out")
    (tmp_path / ".other.partial").mkdir()
    (tmp_path / ".other.partial" / "half").write_text("x")
    sweep(tmp_path)
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_what_is_replaced_comes_back_where_its_successor_does_not_come(tmp_path, monkeypatch, error):
    write(tmp_path / "out", "first")
    partial = hidden(tmp_path / "new")
    partial.mkdir()
    rename = Path.rename

    def fail(self, target):
        if self == partial:
            raise error
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail)
        with pytest.raises(error):
            complete(partial, tmp_path / "out", aside=tmp_path / "aside")
    assert (tmp_path / "out" / "a.txt").read_text() == "first"
    assert sorted(os.listdir(tmp_path)) == [".new.partial", "out"]
    complete(partial, tmp_path / "out", aside=tmp_path / "aside")
    assert os.listdir(tmp_path / "out") == ["manifest.json"]
    assert (tmp_path / "aside" / "a.txt").read_text() == "first"


def test_several_writers_begin_and_complete_one_directory(tmp_path):
    partial = begin(tmp_path / "deep" / "out")
    assert partial == hidden(tmp_path / "deep" / "out")
    assert partial.is_dir()
    (partial / "a.txt").write_text("a")
    partial = begin(tmp_path / "deep" / "out")  # a killed try leaves nothing in the next one's way
    assert os.listdir(partial) == []
    (partial / "folder").mkdir()
    for name in ("folder/0.txt", "folder/1.txt"):
        (partial / name).write_text(name)
    complete(partial, tmp_path / "deep" / "out")
    verify(tmp_path / "deep" / "out")
    assert os.listdir(tmp_path / "deep") == ["out"]
    with pytest.raises(LawaError, match="exists already; remove it"):
        begin(tmp_path / "deep" / "out")
    assert os.listdir(tmp_path / "deep") == ["out"]


def test_what_is_listed_is_what_lies_there(tmp_path):
    write(tmp_path / "out", "seven..")
    files = listed(tmp_path / "out")
    assert sorted(files) == ["a.txt", "folder/b.txt"]
    for name, entry in files.items():
        assert entry == {"bytes": 7, "sha256": sha256(tmp_path / "out" / name)}


@pytest.fixture
def read(monkeypatch):
    """The names of the files whose digest was taken."""
    names = []

    def counted(file):
        names.append(file.name)
        return sha256(file)

    monkeypatch.setattr("lawa.checkpoints.publish.sha256", counted)
    return names


def test_what_another_manifest_knows_is_not_read_again(tmp_path, read):
    write(tmp_path / "first")
    assert sorted(read) == ["a.txt", "b.txt"]
    with publish(tmp_path / "second") as partial:
        link(tmp_path / "first" / "folder", partial / "folder")
        (partial / "new.txt").write_text("new")
        write_manifest(partial, known=listed(tmp_path / "first"))
        written = listed(partial)
        read.clear()
        write_manifest(partial, known=listed(tmp_path / "first"))
        assert read == ["new.txt"]
    assert sorted(written) == ["folder/b.txt", "new.txt"], "and what is known but not there is not listed"
    assert written == listed(tmp_path / "second")
    verify(tmp_path / "second")


def linked(tmp_path):
    """A published file and a published folder (with a hidden file, as DCP's), linked elsewhere."""
    source = tmp_path / "source"
    with publish(source) as partial:
        (partial / "a.txt").write_text("a")
        (partial / "folder" / "inner").mkdir(parents=True)
        (partial / "folder" / ".metadata").write_text("m")
        (partial / "folder" / "inner" / "b.txt").write_text("b")
    link(source / "a.txt", tmp_path / "a.txt")
    link(source / "folder", tmp_path / "new" / "folder")
    return {
        source / "a.txt": tmp_path / "a.txt",
        source / "folder" / ".metadata": tmp_path / "new" / "folder" / ".metadata",
        source / "folder" / "inner" / "b.txt": tmp_path / "new" / "folder" / "inner" / "b.txt",
    }


def test_a_link_is_the_same_file_and_outlives_the_other_name(tmp_path):
    pairs = linked(tmp_path)
    assert all(source.samefile(target) for source, target in pairs.items())
    remove(tmp_path / "source")
    assert [target.read_text() for target in pairs.values()] == ["a", "m", "b"]


def test_without_hard_links_a_link_is_a_copy(tmp_path, monkeypatch):
    def refuse(self, target):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    pairs = linked(tmp_path)
    assert not any(source.samefile(target) for source, target in pairs.items())
    shutil.rmtree(tmp_path / "source")
    assert [target.read_text() for target in pairs.values()] == ["a", "m", "b"]


def test_every_file_and_folder_is_brought_to_disk_before_it_is_published(tmp_path, monkeypatch):
    flushed = []
    fsync = os.fsync

    def noted(descriptor):
        flushed.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    out = tmp_path / "out"
    with publish(out) as partial:
        (partial / "folder" / "inner").mkdir(parents=True)
        (partial / "folder" / "inner" / "b.txt").write_text("b")
    number = {path: path.stat().st_ino for path in (tmp_path, out, *out.rglob("*"))}
    assert flushed[:2] == [number[out / "folder" / "inner" / "b.txt"], number[out / "manifest.json"]]
    assert set(flushed[2:-1]) == {number[path] for path in (out, out / "folder", out / "folder" / "inner")}
    assert flushed[-1] == number[tmp_path]


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../secret"])
def test_what_a_manifest_lists_outside_its_directory_is_refused(tmp_path, name):
    (tmp_path / "one").mkdir()
    (tmp_path / "secret").write_bytes(b"x")
    entry = {"bytes": 1, "sha256": sha256(tmp_path / "secret")}
    (tmp_path / "one" / "manifest.json").write_text(json.dumps({"files": {name: entry}}))
    with pytest.raises(LawaError, match=r"lists '.*', which is not in its directory"):
        verify(tmp_path / "one")


@pytest.mark.parametrize("files", [[], {"a": 3}, {"a": {"sha256": ""}}, {"a": {"bytes": "many", "sha256": ""}}])
def test_a_damaged_manifest_is_named(tmp_path, files):
    (tmp_path / "manifest.json").write_text(json.dumps({"files": files}))
    with pytest.raises(LawaError, match=r"manifest\.json is no manifest .*; it is damaged"):
        verify(tmp_path)
