"""Documents on disk and their split."""

import hashlib
import subprocess
from pathlib import Path

import pytest

from lawa.data import corpus
from lawa.data.corpus import Document, documents, refuse_overlap, split
from lawa.errors import LawaError


def some(count: int, *, bytes: int = 100) -> list[Document]:
    return [
        Document(name=f"{i:03}.txt", path=Path(f"{i:03}.txt"), bytes=bytes, sha256=f"{i:064x}") for i in range(count)
    ]


def names(documents: list[Document]) -> list[str]:
    return [document.name for document in documents]


def test_a_folder_is_read_recursively_sorted_and_byte_for_byte(folder: Path, texts: dict[str, str]):
    (folder / "notes.md").write_text("not text of the corpus")
    (folder / ".hidden.txt").write_text("hidden")
    (folder / ".cache").mkdir()
    (folder / ".cache/copy.txt").write_text("hidden too")
    found = documents([folder])
    assert names(found) == sorted(texts)
    for document in found:
        assert document.text() == texts[document.name]
        assert document.bytes == len(texts[document.name].encode())
        assert document.sha256 == hashlib.sha256(texts[document.name].encode()).hexdigest()


def test_files_are_taken_as_they_are_and_the_order_of_paths_does_not_matter(tmp_path: Path):
    (tmp_path / "b.md").write_text("b")
    (tmp_path / "a.text").write_text("a")
    there, back = (
        documents([tmp_path / "b.md", tmp_path / "a.text"]),
        documents([tmp_path / "a.text", tmp_path / "b.md"]),
    )
    assert names(there) == ["a.text", "b.md"]
    assert there == back
    assert documents(str(tmp_path / "b.md")) == there[1:]


def test_the_digest_is_what_sha256sum_says(folder: Path, texts: dict[str, str]):
    shell = subprocess.run(
        f"sha256sum {' '.join(sorted(texts))} | sha256sum", shell=True, cwd=folder, capture_output=True, check=True
    )
    assert corpus.digest(documents([folder])) == shell.stdout.decode().split()[0]


def test_a_character_across_two_blocks_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(corpus, "_BLOCK", 3)
    (tmp_path / "a.txt").write_text("ab日本🙂", encoding="utf-8")
    assert documents([tmp_path])[0].text() == "ab日本🙂"


def test_the_place_of_a_bad_byte_counts_from_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(corpus, "_BLOCK", 4)
    (tmp_path / "a.txt").write_bytes(b"abcdefghi\xff")
    with pytest.raises(LawaError, match="near byte 9"):
        documents([tmp_path])


@pytest.mark.parametrize(
    ("files", "paths", "sentence"),
    [
        ({}, [], "no text was given; name text files"),
        ({}, ["nowhere"], "nowhere does not exist; name text files"),
        ({"empty/readme.md": b"x"}, ["empty"], r"empty has no \*\.txt file; name a folder"),
        ({"a.txt": b""}, ["a.txt"], "a.txt is empty; remove it"),
        ({"a.txt": b"abc\xffdef"}, ["a.txt"], "a.txt is not UTF-8 .invalid start byte near byte 3.; convert it"),
        ({"a.txt": b"abc\xe2\x82"}, ["a.txt"], "a.txt is not UTF-8 .unexpected end of data near byte"),
        ({"a.txt": b"x"}, ["a.txt", "a.txt"], "two documents are called a.txt: .*give the folder above both"),
        ({"x/a.txt": b"1", "y/a.txt": b"2"}, ["x", "y"], "two documents are called a.txt: .*x/a.txt and .*y/a.txt"),
        ({"a.txt": b"same", "b.txt": b"same"}, ["."], "a.txt and .*b.txt hold the same text.*; remove one"),
    ],
)
def test_what_will_not_do_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes], paths: list[str], sentence: str
):
    monkeypatch.chdir(tmp_path)
    for name, content in files.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(content)
    with pytest.raises(LawaError, match=sentence):
        documents(paths)


def test_a_document_that_changed_since_it_was_listed_is_refused(folder: Path):
    document = documents([folder])[0]
    document.path.write_text("something else")
    with pytest.raises(LawaError, match=r"storm.txt changed while it was in use; start again"):
        document.text()


def test_the_split_is_disjoint_complete_near_the_fraction_and_the_same_every_time():
    every = some(200)
    training, validation = split(every, fraction=0.1, seed=0)
    assert len(validation) == 20
    assert sorted(names(training) + names(validation)) == names(every)
    assert names(training) == sorted(names(training))
    assert names(validation) == sorted(names(validation))
    assert split(every[::-1], fraction=0.1, seed=0)[1] == validation[::-1]
    # Frozen: another order would put another text into validation, and old runs could not be compared.
    assert names(split(some(20), fraction=0.2, seed=0)[1]) == GOLDEN_SPLIT


GOLDEN_SPLIT = ["002.txt", "004.txt", "008.txt", "011.txt"]


def test_another_seed_holds_out_others():
    every = some(200)
    assert names(split(every, fraction=0.1, seed=0)[1]) != names(split(every, fraction=0.1, seed=1)[1])


def test_a_document_more_moves_few_others():
    before = set(names(split(some(200), fraction=0.1, seed=0)[1]))
    after = set(names(split(some(201), fraction=0.1, seed=0)[1]))
    assert len(before ^ after) <= 2


def test_the_fraction_is_one_of_bytes():
    every = [*some(50, bytes=10), *(Document(name=f"big{i}", path=Path(), bytes=1000, sha256="") for i in range(50))]
    for seed in range(20):
        held_out = sum(document.bytes for document in split(every, fraction=0.3, seed=seed)[1])
        assert abs(held_out - 0.3 * 50500) <= 500  # half of the largest document


def test_a_small_fraction_still_holds_one_document_out():
    assert len(split(some(3), fraction=0.01, seed=0)[1]) == 1


def test_a_split_that_leaves_nothing_to_train_on_is_refused():
    with pytest.raises(LawaError, match=r"1 document\(s\) cannot be split .*give more files"):
        split(some(1), fraction=0.1, seed=0)
    with pytest.raises(LawaError, match="none is left for training"):
        split(some(2), fraction=0.9, seed=0)
    for fraction in (0, 1, -0.5, 7):
        with pytest.raises(LawaError, match=f"validation_fraction is {fraction}; it must lie between 0 and 1"):
            split(some(3), fraction=fraction, seed=0)


def test_the_same_text_on_both_sides_is_refused_under_any_name(tmp_path: Path):
    (tmp_path / "a.txt").write_text("the same")
    (tmp_path / "b.txt").write_text("the same")
    (tmp_path / "c.txt").write_text("another")
    a, b, c = (documents([tmp_path / f"{name}.txt"]) for name in "abc")
    refuse_overlap(a, c)
    with pytest.raises(LawaError, match=r"a.txt is training text, and the same text is validation .*b.txt"):
        refuse_overlap(a, b)
