"""Documents and their split: files, and rows of JSONL."""

import gzip
import json
from pathlib import Path

import pytest

from lawa.data.corpus import Texts, held_out, splitter
from lawa.data.files import File
from lawa.data.sources import TextSource
from lawa.errors import LawaError


def some(count: int, *, bytes: int = 100) -> list[File]:
    return [
        File(name=f"{i:03}.txt", path=Path(f"{i:03}.txt"), bytes=bytes, mtime_ns=0, sha256=f"{i:064x}")
        for i in range(count)
    ]


def chosen(count: int, *, fraction: float = 0.1, seed: int = 0) -> set[str]:
    return held_out(some(count), fraction=fraction, seed=seed)


def test_the_held_out_files_are_near_the_fraction_and_the_same_every_time():
    assert len(chosen(200)) == 20
    assert held_out(some(200)[::-1], fraction=0.1, seed=0) == chosen(200)
    # Frozen: another order would put another text into validation, and old runs could not be compared.
    assert chosen(20, fraction=0.2) == {"002.txt", "004.txt", "008.txt", "011.txt"}


def test_another_seed_holds_out_others():
    assert chosen(200) != chosen(200, seed=1)


def test_a_file_more_moves_few_others():
    assert len(chosen(200) ^ chosen(201)) <= 2


def test_the_fraction_is_one_of_bytes():
    big = [File(name=f"big{i}", path=Path(), bytes=1000, mtime_ns=0) for i in range(50)]
    every = [*some(50, bytes=10), *big]
    sizes = {file.name: file.bytes for file in every}
    for seed in range(20):
        taken = sum(sizes[name] for name in held_out(every, fraction=0.3, seed=seed))
        assert abs(taken - 0.3 * 50500) <= 500  # half of the largest file


def test_a_small_fraction_still_holds_one_file_out():
    assert len(chosen(3, fraction=0.01)) == 1


def test_a_split_that_leaves_nothing_to_train_on_is_refused():
    with pytest.raises(LawaError, match=r"1 document\(s\) cannot be split .*give more files"):
        chosen(1)
    with pytest.raises(LawaError, match="none is left for training"):
        chosen(2, fraction=0.9)


def lines(folder: Path, name: str, texts: list[object], *, field: str = "text") -> Path:
    content = "".join(json.dumps({"id": i, field: text}) + "\n" for i, text in enumerate(texts)).encode()
    (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return folder / name


def at(*paths: Path, field: str = "text") -> Texts:
    found = Texts(TextSource(paths=[str(path) for path in paths], text=field))
    found.read_through()
    return found


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_a_line_is_a_document_and_those_without_text_are_left_out(tmp_path: Path, name: str):
    texts = ["one", "", "日本 🙂\n\u2028", "a" * 100_000, "end"]
    file = lines(tmp_path, name, [*texts], field="body")
    found = at(tmp_path, field="body")
    documents = list(found.documents())
    assert [document.text for document in documents] == [text for text in texts if text]
    assert all(document.row and document.file == 0 for document in documents)
    assert documents[1].where == f"{file}, line 3"
    consumed = sum(document.consumed for document in documents)
    assert consumed == file.stat().st_size == found.bytes


def test_blank_lines_and_a_last_line_without_end_are_read(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n\n  \n{"text": "b"}')
    assert [document.text for document in at(tmp_path / "a.jsonl").documents()] == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (b"{", r"a.jsonl, line 2 is not JSON \(.*\); mend or remove the line"),
        (b'{"text": "\xff"}', "line 2 is not JSON"),
        (b"[1]", "line 2 is list, not a mapping of fields; mend"),
        (b'{"txt": "x"}', "line 2: the field 'text' is missing; name the field that has the text"),
        (b'{"text": 3}', "line 2: the field 'text' is int, not text"),
        (b'{"text": "\\ud800"}', "line 2: the text has half a surrogate pair .*; mend or remove the row"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, sentence: str):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good"}\n' + line + b"\n")
    with pytest.raises(LawaError, match=sentence):
        list(at(tmp_path / "a.jsonl").documents())


@pytest.mark.parametrize("damage", [slice(None, -9), slice(5, None), slice(0, 60)])
def test_a_damaged_archive_is_named(tmp_path: Path, damage: slice):
    file = lines(tmp_path, "a.jsonl.gz", [f"text {i * i}" for i in range(100)])
    file.write_bytes(file.read_bytes()[damage])
    with pytest.raises(
        LawaError, match=r"a.jsonl.gz(, line \d+ is not JSON|.*damaged after line \d+ .*; fetch it again)"
    ):
        list(at(file).documents())


GOLDEN_HELD = ["text 0", "text 1", "text 3", "text 14", "text 16"]


def sides(corpus: Texts, *, fraction: float = 0.2, seed: int = 0) -> dict[str, str]:
    split = splitter(corpus, fraction=fraction, seed=seed)
    return {document.text: split(document) for document in corpus.documents()}


def test_rows_are_held_out_by_their_text_alone(tmp_path: Path):
    texts = [f"text {i}" for i in range(2000)]
    found = sides(at(lines(tmp_path, "a.jsonl", [*texts])))
    held = [text for text, side in found.items() if side == "validation"]
    assert abs(len(held) - 400) < 4 * (2000 * 0.2 * 0.8) ** 0.5
    assert held[:5] == GOLDEN_HELD  # frozen, as above
    assert sides(at(lines(tmp_path, "b.jsonl.gz", [*texts[::-1]]))) == found
    assert sides(at(tmp_path / "a.jsonl"), seed=1) != found
    more = sides(at(tmp_path / "a.jsonl"), fraction=0.5)
    assert all(more[text] == "validation" for text in held)


def test_files_beside_rows_are_split_like_rows(tmp_path: Path):
    lines(tmp_path, "rows.jsonl", ["a row"])
    (tmp_path / "one.txt").write_text("the one file")
    assert sides(at(tmp_path), fraction=0.999) == dict.fromkeys(["the one file", "a row"], "validation")
