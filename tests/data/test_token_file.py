"""JSONL becomes a token file that is exact, strict about what it reads, and gone on with after a kill."""

import json
import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.chunk_files import rows_of, write_chunk
from lawa.data import token_file, token_lines
from lawa.data.token_file import open_ids
from lawa.errors import LawaError

WIDTH, VOCAB = 9, 320
IDS = rows_of(0, 40, WIDTH, VOCAB)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_chunk(tmp_path / "train_000.jsonl", IDS)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stretches of a few lines."""
    monkeypatch.setattr(token_file, "STRETCH", 200)


def convert(source: Path, **more: object) -> np.ndarray:
    return open_ids(source, **{"width": WIDTH, "vocab_size": VOCAB, "workers": 1, **more})  # type: ignore[arg-type]


def record_file(source: Path) -> Path:
    return source.with_name(f"{source.name}.ids.json")


def record(source: Path) -> dict[str, Any]:
    return json.loads(record_file(source).read_text())


# ---- what is read


@pytest.mark.parametrize(("vocab", "dtype"), [(VOCAB, "<u2"), (1 << 16, "<u2"), ((1 << 16) + 1, "<u4")])
def test_ids_are_read_exactly_in_the_smallest_dtype(tmp_path: Path, vocab: int, dtype: str):
    ids = rows_of(1, 20, WIDTH, vocab)
    ids[3, 4], ids[0, 0], ids[19, 8] = vocab - 1, 0, 0
    found = convert(write_chunk(tmp_path / "a.jsonl", ids), vocab_size=vocab)
    assert isinstance(found, np.memmap)
    assert found.dtype == dtype
    assert found.tolist() == ids.tolist()
    assert (tmp_path / "a.jsonl.ids").read_bytes() == ids.astype(dtype).tobytes()


def test_any_json_is_read_as_the_json_module_reads_it(tmp_path: Path):
    ids = [[3, 0, 319], [10, 1, 2], [0, 0, 0]]
    forms = [
        lambda row: json.dumps({"token_ids": row, "source": "c4"}),
        lambda row: json.dumps({"source": "a ]] b", "token_ids": row}),
        lambda row: json.dumps({"token_ids": row}, separators=(",", ":")),
        lambda row: json.dumps({"token_ids": row, "meta": {"token_ids": [1], "n": [1, 2]}}),
        lambda row: f'{{"token_ids": [1, 2, 3], "token_ids": {row}}}',
        lambda row: f' {{"token_ids" : [ {row[0]} ,{row[1]},\t{row[2]}] }} ',
        lambda row: json.dumps({"token_ids": row, "source": "Ψ🙂"}, ensure_ascii=False),
    ]
    lines = [form(row) for form in forms for row in ids]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))  # and no end of the last line
    assert convert(tmp_path / "a.jsonl", width=3).tolist() == ids * len(forms)


WRONG = [
    ("[1, 2]", "has 2 ids, and not context [+] 1 = 3"),
    ("[1, 2, 3, 4]", "has 4 ids"),
    ("[]", "has 0 ids"),
    ("[1, 2, 320]", "holds 320, and ids are whole numbers from 0 to 319"),
    ("[1, 2, 99999999999999999999999]", "holds 99999999999999999999999"),
    ("[1, 2, -1]", "holds -1"),
    ("[1, 2.5, 3]", "holds 2.5"),
    ("[1, true, 3]", "holds true"),
    ('[1, "2", 3]', 'holds "2"'),
    ("[1, [2], 3]", "holds"),
    ("[1, 02, 3]", "is no JSON"),
    ("[01, 2, 3]", "is no JSON"),
    ("[1, 2, 03]", "is no JSON"),
    ("[1, , 3]", "is no JSON"),
    ("[, 2, 3]", "is no JSON"),
    ("[1, 2, ]", "is no JSON"),
    ("[1, 2, 3, ]", "is no JSON"),
    ("[1, 2, 3,]", "is no JSON"),
    ("[1, 2, 3 ,]", "is no JSON"),
    ("[1 2, , 3]", "is no JSON"),
    ("[1, 2, 3", "is no JSON"),
    ("7", 'has no list "token_ids"'),
    ("null", 'has no list "token_ids"'),
    ('[1, 2, 3], "token_ids": null', 'has no list "token_ids"'),
]


@pytest.mark.parametrize(("ids", "said"), WRONG)
def test_a_wrong_line_is_named(tmp_path: Path, ids: str, said: str):
    good = json.dumps({"token_ids": [1, 2, 3]})
    file = tmp_path / "a.jsonl"
    file.write_text(f'{good}\n{good}\n{{"token_ids": {ids}, "source": "c4"}}\n{good}\n')
    with pytest.raises(LawaError, match=rf"a\.jsonl, line 3, {said}.*; fetch it anew"):
        convert(file, width=3)


@pytest.mark.parametrize(
    "line", ["", "[1, 2, 3]", '{"ids": [1, 2, 3]}', '{"token_ids": [1, 2, 3]} {}', "\ufeff{}", "\x00"]
)
def test_what_is_no_line_of_ids_is_named(tmp_path: Path, line: str):
    (tmp_path / "a.jsonl").write_text(f"{line}\n")
    with pytest.raises(LawaError, match=r"line 1, (is no JSON|has no list)"):
        convert(tmp_path / "a.jsonl", width=3)


def test_a_file_that_was_cut_off_is_told_apart(source: Path):
    data = source.read_bytes()
    source.write_bytes(data[:-20])
    with pytest.raises(LawaError, match="line 40, is cut off; fetch it anew"):
        convert(source)
    source.write_bytes(data[:-1])  # only the last line's end is missing
    assert convert(source).tolist() == IDS.tolist()


def test_missing_and_empty_files_are_named(tmp_path: Path):
    with pytest.raises(LawaError, match=r"b\.jsonl does not exist; fetch it"):
        convert(tmp_path / "b.jsonl")
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(LawaError, match=r"a\.jsonl is empty"):
        convert(tmp_path / "a.jsonl")


@settings(max_examples=60, deadline=None)
@given(lines=st.integers(1, 12), cuts=st.lists(st.integers(0, 700), max_size=6))
def test_stretches_cut_anywhere_give_every_line_once(
    tmp_path_factory: pytest.TempPathFactory, lines: int, cuts: list[int]
):
    file = write_chunk(tmp_path_factory.mktemp("lines") / "a.jsonl", IDS[:lines])
    size = file.stat().st_size
    bounds = sorted({0, size, *(cut for cut in cuts if cut < size)})
    parts = [token_lines.read(file, start, stop, width=WIDTH, vocab_size=VOCAB).ids for start, stop in pairwise(bounds)]
    assert np.concatenate(parts).tolist() == IDS[:lines].tolist()


def test_stretches_cut_at_and_beside_the_beginning_of_a_line_give_every_line_once(source: Path):
    at = source.read_bytes().index(b"\n", 1000) + 1
    for cut in (at - 1, at, at + 1):
        parts = [
            token_lines.read(source, *stretch, width=WIDTH, vocab_size=VOCAB).ids
            for stretch in ((0, cut), (cut, 1 << 20))
        ]
        assert np.concatenate(parts).tolist() == IDS.tolist()


def test_plain_lines_do_not_need_the_json_module(source: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(token_lines, "_checked", None)
    assert convert(source).tolist() == IDS.tolist()


# ---- what is kept


def test_processes_of_their_own_read_the_same(source: Path, small: None):
    told: list[tuple[int, int | None]] = []
    size = 600 + len(source.read_bytes()[600:].partition(b"\n")[0]) + 1  # a few processes are enough
    os.truncate(source, size)
    found = convert(source, workers=2, progress=lambda *done: told.append(done))
    assert found.tolist() == IDS[: len(found)].tolist()
    assert len(found) == source.read_bytes().count(b"\n")
    assert told == [(200, size), (400, size), (600, size), (size, size)]


def test_a_wrong_line_is_numbered_across_stretches(source: Path, small: None):
    lines = source.read_text().splitlines(keepends=True)
    lines[30] = lines[30].replace("[", "[7, ", 1)
    source.write_text("".join(lines))
    with pytest.raises(LawaError, match="line 31, has 10 ids"):
        convert(source)
    with pytest.raises(LawaError, match="line 31, has 10 ids"):  # from where the first stopped
        convert(source, workers=2)


def test_a_converted_file_is_not_read_again_and_its_source_not_needed(source: Path, monkeypatch: pytest.MonkeyPatch):
    convert(source)
    monkeypatch.setattr(token_file, "read", None)
    assert convert(source).tolist() == IDS.tolist()
    os.utime(source, (1, 1))  # fetched again
    assert convert(source).tolist() == IDS.tolist()
    source.unlink()
    assert convert(source).tolist() == IDS.tolist()
    with pytest.raises(LawaError, match="does not exist"):
        convert(source, width=WIDTH + 1)


def test_another_source_is_converted_anew_beside_readers_of_the_old(source: Path):
    old = convert(source)
    assert (old[:] == IDS).all()
    other = IDS.copy()
    other[20, 3] = (other[20, 3] + 1) % 10 if other[20, 3] < 10 else other[20, 3] - 1
    assert not (other == IDS).all()
    write_chunk(source, other)
    assert convert(source).tolist() == other.tolist()
    assert old.tolist() == IDS.tolist()


def test_a_smaller_vocabulary_is_checked_without_reading_again(source: Path):
    convert(source)
    with pytest.raises(LawaError, match=rf"holds the id {IDS.max()}, and the vocabulary ends at {IDS.max() - 1}"):
        convert(source, vocab_size=int(IDS.max()))


def test_a_cache_keeps_the_sources_folder_clean(source: Path, tmp_path: Path):
    convert(source, cache=tmp_path / "made" / "cache")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["train_000.jsonl"]
    assert (tmp_path / "made/cache/train_000.jsonl.ids").is_file()


def test_a_place_that_cannot_be_written_is_named(source: Path, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(LawaError, match="cannot be written"):
        convert(source, cache=tmp_path / "file")


@pytest.mark.parametrize("stop_after", [1, 3, 7])
def test_a_stopped_conversion_goes_on_where_it_was(
    source: Path, small: None, monkeypatch: pytest.MonkeyPatch, stop_after: int
):
    class Stop(Exception):
        pass

    def stop(done: int, _: int | None) -> None:
        if done >= 200 * stop_after:
            raise Stop

    with pytest.raises(Stop):
        convert(source, progress=stop)
    kept = record(source)
    assert kept["done"] == 200 * stop_after
    with source.with_name(f"{source.name}.ids").open("ab") as torn:
        torn.write(b"\xff" * 13)  # what a kill leaves of the next stretch
    asked: list[int] = []
    read = token_lines.read
    monkeypatch.setattr(
        token_file, "read", lambda file, start, stop, **k: (asked.append(start), read(file, start, stop, **k))[1]
    )
    assert convert(source).tolist() == IDS.tolist()
    assert asked[0] == 200 * stop_after
    assert source.with_name(f"{source.name}.ids").stat().st_size == IDS.size * 2


@pytest.mark.parametrize("harm", ["record", "ids", "shorter"])
def test_what_is_damaged_is_made_anew(source: Path, harm: str):
    convert(source)
    ids = source.with_name(f"{source.name}.ids")
    if harm == "record":
        record_file(source).write_text('{"format": 1, "do')
    elif harm == "ids":
        ids.unlink()
    else:
        os.truncate(ids, 100)
    assert convert(source).tolist() == IDS.tolist()


@pytest.mark.slow
def test_a_kill_at_any_time_does_no_harm(tmp_path: Path):
    ids = rows_of(3, 3000, 65, 32000)
    source = write_chunk(tmp_path / "a.jsonl", ids)
    code = (
        "import sys, time; from pathlib import Path; from lawa.data import token_file; token_file.STRETCH = 20_000\n"
        "token_file.open_ids(Path(sys.argv[1]), width=65, vocab_size=32000, workers=1,"
        " progress=lambda *_: time.sleep(0.01))"
    )
    done = 0
    for _ in range(4):
        process = subprocess.Popen([sys.executable, "-c", code, str(source)])
        while not (record_file(source).exists() and record(source)["done"] > done):
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert done < record(source)["done"] < source.stat().st_size
        done = record(source)["done"]
    assert open_ids(source, width=65, vocab_size=32000, workers=1).tolist() == ids.tolist()
