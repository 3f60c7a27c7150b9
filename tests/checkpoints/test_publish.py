"""A published directory is whole or absent."""

import os

import pytest

from lawa.checkpoints.publish import is_published, publish, remove, sweep, verify, write_manifest
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
