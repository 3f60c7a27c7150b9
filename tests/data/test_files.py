"""Files on disk: found, read through, and recognised without being read again."""

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from lawa.data import corpus, files
from lawa.data.corpus import Texts
from lawa.data.files import File, compare, find, read_through
from lawa.data.sources import TextSource
from lawa.errors import LawaError


def texts_at(*paths: Path | str) -> Texts:
    """What is at these paths, read through."""
    found = Texts(TextSource(paths=[str(path) for path in paths]))
    found.read_through()
    return found


def names(files: list[File]) -> list[str]:
    return [file.name for file in files]


def test_a_folder_is_read_recursively_sorted_and_byte_for_byte(folder: Path, texts: dict[str, str]):
    (folder / "notes.md").write_text("not text of the corpus")
    (folder / ".hidden.txt").write_text("hidden")
    (folder / ".cache").mkdir()
    (folder / ".cache/copy.txt").write_text("hidden too")
    found = texts_at(folder)
    assert names(found.files) == sorted(texts)
    for file, document in zip(found.files, found.documents(), strict=True):
        assert document.text == texts[file.name]
        assert document.consumed == file.bytes == len(texts[file.name].encode())
        assert document.sha256 == file.sha256 == hashlib.sha256(texts[file.name].encode()).hexdigest()


def test_files_are_taken_as_they_are_and_the_order_of_paths_does_not_matter(tmp_path: Path):
    (tmp_path / "b.md").write_text("b")
    (tmp_path / "a.text").write_text("a")
    there, back = find([tmp_path / "b.md", tmp_path / "a.text"]), find([tmp_path / "a.text", tmp_path / "b.md"])
    assert names(there) == ["a.text", "b.md"]
    assert there == back
    assert find([str(tmp_path / "b.md")]) == there[1:]


def test_the_digest_is_what_sha256sum_says(folder: Path, texts: dict[str, str]):
    shell = subprocess.run(
        f"sha256sum {' '.join(sorted(texts))} | sha256sum", shell=True, cwd=folder, capture_output=True, check=True
    )
    assert corpus.digest(texts_at(folder).files) == shell.stdout.decode().split()[0]


def test_a_character_across_two_blocks_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(files, "_BLOCK", 3)
    (tmp_path / "a.txt").write_text("ab日本🙂", encoding="utf-8")
    assert [document.text for document in texts_at(tmp_path).documents()] == ["ab日本🙂"]


def test_the_place_of_a_bad_byte_counts_from_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(files, "_BLOCK", 4)
    (tmp_path / "a.txt").write_bytes(b"abcdefghi\xff")
    with pytest.raises(LawaError, match="near byte 9"):
        texts_at(tmp_path)


@pytest.mark.parametrize(
    ("content", "paths", "sentence"),
    [
        ({}, [], "no text was given; name text files"),
        ({}, ["nowhere"], "nowhere does not exist; name text files"),
        ({"empty/readme.md": b"x"}, ["empty"], r"empty has no \*\.txt, \*\.jsonl, \*\.jsonl\.gz; name a folder"),
        ({"a.txt": b""}, ["a.txt"], "a.txt is empty; remove it"),
        ({"a.jsonl": b""}, ["a.jsonl"], "a.jsonl is empty; remove it"),
        ({"a.txt": b"abc\xffdef"}, ["a.txt"], "a.txt is not UTF-8 .invalid start byte near byte 3.; convert it"),
        ({"a.txt": b"abc\xe2\x82"}, ["a.txt"], "a.txt is not UTF-8 .unexpected end of data near byte"),
        ({"a.txt": b"x"}, ["a.txt", "a.txt"], "two documents are called a.txt: .*give the folder above both"),
        ({"x/a.txt": b"1", "y/a.txt": b"2"}, ["x", "y"], "two documents are called a.txt: .*x/a.txt and .*y/a.txt"),
        ({"a.txt": b"same", "b.txt": b"same"}, ["."], "a.txt and .*b.txt hold the same text.*; remove one"),
    ],
)
def test_what_will_not_do_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: dict[str, bytes], paths: list[str], sentence: str
):
    monkeypatch.chdir(tmp_path)
    for name, written in content.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(written)
    with pytest.raises(LawaError, match=sentence):
        texts_at(*paths)


@pytest.mark.parametrize(("name", "content"), [("a.txt", "text"), ("a.jsonl", '{"text": "text"}\n')])
def test_a_file_that_changed_since_it_was_listed_is_refused(tmp_path: Path, name: str, content: str):
    (tmp_path / name).write_text(content)
    found = texts_at(tmp_path / name)
    (tmp_path / name).write_text(content.replace('text"}', 'other"}') if name == "a.jsonl" else "other")
    with pytest.raises(LawaError, match=rf"{name} changed while it was in use; start again"):
        list(found.documents())


def test_files_are_recognised_by_size_and_time_and_else_by_what_is_in_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    known = [read_through(file).record() for file in find([folder])]
    digested: list[str] = []
    digest = File.digest
    monkeypatch.setattr(File, "digest", lambda self: digested.append(self.name) or digest(self))
    assert compare(known, find([folder])) == ([], [])
    assert digested == []
    os.utime(folder / "sonnet.txt", ns=(1, 1))
    assert compare(known, find([folder])) == ([], [])
    assert digested == ["sonnet.txt"]
    (folder / "sonnet.txt").write_bytes((folder / "sonnet.txt").read_bytes()[::-1])  # of the same size
    (folder / "hostile.txt").unlink()
    (folder / "new.txt").write_text("new")
    assert compare(known, find([folder])) == (["hostile.txt", "sonnet.txt"], ["new.txt", "sonnet.txt"])
    assert digested == ["sonnet.txt", "sonnet.txt"]
