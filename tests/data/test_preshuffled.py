"""Sequences on disk in order: Pythia's files in small, and at their full size with holes."""

import struct
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.given_files import cut, sequences, write_index
from lawa.data.batches import open_batches
from lawa.errors import LawaError, UsageError


def opened(files: list[Path], **more: Any) -> Any:
    return open_batches({"preshuffled": {"files": files, "batch": 4, "context": 8, **more}})


def test_three_unequal_files_with_a_sequence_across_two(tmp_path: Path):
    whole = sequences(12, 8)
    found = opened(cut(tmp_path, whole.tobytes(), [18 * 5 + 6, 18 * 4]), vocab_size=50304)
    assert found.updates == range(1, 4)
    for t in (1, 2, 3):  # sequences 5 and 9 lie across
        rows = found.rows(t)
        assert rows.dtype == np.int64
        assert rows.tolist() == whole[(t - 1) * 4 : t * 4].tolist()
        assert rows[2].tolist() == found.rows(t, slice(2, 3))[0].tolist()


def test_files_cut_within_a_token(tmp_path: Path):
    whole = sequences(12, 8)
    found = opened(cut(tmp_path, whole.tobytes(), [75, 1, 40]))
    assert [found.rows(t).tolist() for t in found.updates] == whole.reshape(3, 4, 9).tolist()


def test_a_part_that_was_fetched_keeps_its_numbers(tmp_path: Path):
    """Checkpoint step N is followed by update N + 1, whose batch begins with sequence N · batch."""
    whole = sequences(40, 8)
    file = tmp_path / "part"
    file.write_bytes(whole[5 * 4 : 8 * 4].tobytes())
    found = opened([file], first=5 * 4)
    assert found.updates == range(6, 9)
    assert found.rows(6).tolist() == whole[20:24].tolist()
    for t in (5, 9):
        with pytest.raises(
            LawaError, match=rf"the batch of update {t} is not in .*part, which has those of updates 6 to 8; give the"
        ):
            found.rows(t)
    file.write_bytes(whole[22:35].tobytes() + b"cut off")
    uneven = opened([file], first=22)
    assert uneven.updates == range(7, 9)
    assert uneven.rows(7).tolist() == whole[24:28].tolist()
    assert uneven.describe()["bytes_after_last_sequence"] == 7
    with pytest.raises(LawaError, match=r"part has the sequences 22 … 34, and no whole batch of 14 among them; fetch"):
        opened([file], first=22, batch=14)


@given(data=st.data(), context=st.integers(1, 6), batch=st.integers(1, 5), first=st.integers(0, 12))
@settings(deadline=None)
def test_all_cuts_and_rows_give_those_of_one_array(data: st.DataObject, context: int, batch: int, first: int):
    end = data.draw(st.integers(first + 2 * batch, first + 30))
    dtype = data.draw(st.sampled_from(["uint16", "int32"]))
    flat = np.arange(1, (end + 1) * (context + 1), dtype=dtype)  # every token says where it lies
    content = flat[first * (context + 1) : end * (context + 1)].tobytes()
    ends = sorted(data.draw(st.sets(st.integers(1, len(content) - 1), max_size=4)))
    bound = st.none() | st.integers(-7, 7)
    rows = slice(data.draw(bound), data.draw(bound), data.draw(st.sampled_from([None, 1, 2, -1, 3])))
    with tempfile.TemporaryDirectory() as folder:
        files = cut(Path(folder), content, np.diff([0, *ends]).tolist())
        found = opened(files, context=context, batch=batch, first=first, dtype=dtype)
        whole = [t for t in range(1, 60) if first <= (t - 1) * batch and t * batch <= end]
        assert list(found.updates) == whole
        for t in whole:
            numbers = np.arange((t - 1) * batch, t * batch)[rows]
            twin = numbers[:, None] * (context + 1) + np.arange(context + 1) + 1
            got = found.rows(t, rows)
            assert got.shape == twin.shape
            assert got.tolist() == twin.tolist()


@pytest.fixture
def genuine(tmp_path: Path) -> tuple[np.ndarray, list[Path], Path]:
    """Sequences of 2049 tokens, and an index that tells so."""
    whole = sequences(16, 2048)
    files = cut(tmp_path, whole.tobytes(), [4098 * 6 + 1000, 4098 * 4])
    return whole, files, write_index(tmp_path / "document.idx", [2049] * 16)


def test_the_genuine_length_with_its_index(genuine: tuple[np.ndarray, list[Path], Path], tmp_path: Path):
    whole, files, index = genuine
    found = opened(files, context=2048, batch=8, index=index)
    assert np.array_equal(found.rows(1), whole[:8])
    assert np.array_equal(found.rows(2), whole[8:])
    part = tmp_path / "part"
    part.write_bytes(whole[4:12].tobytes())  # one file may be any part
    assert np.array_equal(opened([part], context=2048, batch=4, index=index, first=4).rows(2), whole[4:8])


def test_megatron_reads_the_same(genuine: tuple[np.ndarray, list[Path], Path], tmp_path: Path):
    """Megatron's own builder writes the files, and its own reader reads ours."""
    theirs = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    import torch

    whole, files, _ = genuine
    builder = theirs.IndexedDatasetBuilder(str(tmp_path / "built.bin"), dtype=np.uint16)
    for row in whole:
        builder.add_item(torch.from_numpy(row.astype(np.int64)))
        builder.end_document()
    builder.finalize(str(tmp_path / "built.idx"))
    settings = {"context": 2048, "batch": 4, "index": tmp_path / "built.idx"}
    built, ours = opened([tmp_path / "built.bin"], **settings), opened(files, **settings)
    (tmp_path / "merged.bin").write_bytes(b"".join(file.read_bytes() for file in files))
    write_index(tmp_path / "merged.idx", [2049] * 16, documents=range(17))
    merged = theirs.IndexedDataset(str(tmp_path / "merged"))
    for t in range(1, 5):
        assert np.array_equal(built.rows(t), ours.rows(t))
        assert np.array_equal(ours.rows(t), np.stack([merged[i] for i in range((t - 1) * 4, t * 4)]))


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"dtype": "int32", "context": 1023}, r"document.idx is of uint16, not dtype=int32; set it to that"),
        ({"context": 2047}, r"sequence 0 of .*document.idx has 2049 tokens from byte 0 on, not 2048 from byte 0 on"),
        (
            {"first": 8},
            r"has bytes 32784 … 98352, and .*document.idx speaks of 65568; name all files in order and fetch",
        ),
    ],
)
def test_an_index_that_tells_of_others(genuine: Any, wrong: dict[str, Any], sentence: str):
    _, files, index = genuine
    with pytest.raises(LawaError, match=sentence):
        opened(files, **{"context": 2048, "batch": 8, "index": index, **wrong})


def test_a_file_that_was_cut_off_is_found_by_the_index(genuine: Any):
    _, files, index = genuine
    content = files[1].read_bytes()
    files[1].write_bytes(content[:-4098])
    with pytest.raises(LawaError, match=r"00000-of-00002.bin … .* has bytes 0 … 61470, and .* speaks of 65568; name"):
        opened(files, context=2048, batch=8, index=index)
    files[1].write_bytes(content)
    with index.open("r+b") as patched:  # the pointer of the last sequence
        patched.seek(34 + 4 * 16 + 8 * 15)
        patched.write(struct.pack("<q", 7))
    with pytest.raises(LawaError, match=r"sequence 15 of .* has 2049 tokens from byte 7 on, not 2049 from byte 61470"):
        opened(files, context=2048, batch=8, index=index)
    index.write_bytes(index.read_bytes()[:-1])
    with pytest.raises(LawaError, match=r"document.idx has 233 bytes, and its header speaks of 234; it is truncated"):
        opened(files, context=2048, batch=8, index=index)
    index.unlink()
    with pytest.raises(LawaError, match=r"document.idx does not exist; name the index of Megatron's"):
        opened(files, context=2048, batch=8, index=index)


def test_ids_beyond_the_vocabulary_are_found_when_they_are_read(tmp_path: Path):
    whole = sequences(8, 8, below=100)
    whole[6, 3] = 100
    found = opened(cut(tmp_path, whole.tobytes(), []), vocab_size=100)
    found.rows(1)
    found.rows(2, slice(0, 2))
    with pytest.raises(LawaError, match="the batch of update 2 holds the id 100, and the vocabulary ends at 99; corr"):
        found.rows(2)


def test_the_digest_is_that_of_the_content_however_it_is_cut(tmp_path: Path):
    whole = sequences(12, 8)
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    one, several = cut(tmp_path / "a", whole.tobytes(), []), cut(tmp_path / "b", whole.tobytes(), [50, 49])
    digest = opened(one).digest
    assert len(digest) == 64
    assert opened(several).digest == opened(several, vocab_size=50304).digest == digest
    whole[7, 2] += 1
    others = [
        opened(one, first=4),
        opened(one, batch=3),
        opened(one, context=11),
        opened(one, dtype="int32", context=3),
    ]
    others.append(opened(cut(tmp_path / "c", whole.tobytes(), [])))
    assert len({digest, *(other.digest for other in others)}) == 6


def test_it_says_what_is_known(tmp_path: Path):
    whole = sequences(8, 8)
    files = cut(tmp_path, whole.tobytes(), [100])
    assert opened(files).describe() == {
        "kind": "preshuffled",
        "files": [{"path": str(files[0]), "bytes": 100}, {"path": str(files[1]), "bytes": 44}],
        "index": None,
        "dtype": "uint16",
        "sequences": 8,
        "first": 0,
        "updates": [1, 2],
        "bytes_after_last_sequence": 0,
        "known": "the sequences of every update and their order, as they lie in the files",
        "unknown": "where documents end",
        "id_0_in_first_batch": False,
    }
    whole[3, 8] = 0
    assert opened(cut(tmp_path, whole.tobytes(), [])).describe()["id_0_in_first_batch"] is True


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"files": []}, "batches.preshuffled.files is empty; name the files in order"),
        ({"batch": 0}, "batches.preshuffled.batch=0 must be a whole number of at least 1"),
        ({"context": 0}, "batches.preshuffled.context=0 must be a whole number of at least 1"),
        ({"first": -1}, "batches.preshuffled.first=-1 must be a whole number of at least 0"),
        (
            {"dtype": "float32"},
            "batches.preshuffled.dtype='float32' must be one of uint8, uint16, uint32, int32, int64",
        ),
    ],
)
def test_settings_that_cannot_be(wrong: dict[str, Any], sentence: str):
    with pytest.raises(UsageError, match=sentence):
        open_batches({"preshuffled": {"files": ["x"], "batch": 4, "context": 8, **wrong}})


def test_pythias_own_sizes_are_opened_in_constant_time(tmp_path: Path):
    """Files with holes. Of the index only what is written here can have been looked at: the rest is zeros."""
    n, row = 143_000 * 1024, 4098
    files = [tmp_path / f"document-{i:05}-of-00020.bin" for i in range(21)]
    for file in files:
        with file.open("wb") as made:
            made.truncate(30_000_000_000 if file is not files[-1] else n * row - 20 * 30_000_000_000)
    index = tmp_path / "document.idx"
    with index.open("wb") as made:
        made.write(struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, 8, n, 1))
        made.truncate(34 + 12 * n + 8)
        for i in np.linspace(0, n - 1, num=64, dtype=np.int64).tolist():
            made.seek(34 + 4 * i)
            made.write(struct.pack("<i", 2049))
            made.seek(34 + 4 * n + 8 * i)
            made.write(struct.pack("<q", i * row))
    assert index.stat().st_size == 1_757_184_042  # as it was downloaded from the hub
    marks = np.arange(1, 2050, dtype="<u2")
    across = 30_000_000_000 // row  # lies in the first file and the second
    for begin in (100_000 * 1024 * row, across * row):
        for i in (begin // 30_000_000_000, begin // 30_000_000_000 + 1):
            at = begin - i * 30_000_000_000
            with files[i].open("r+b") as made:
                made.seek(max(at, 0))
                made.write(marks.tobytes()[max(-at, 0) : max(30_000_000_000 - at, 0)])
    began = time.perf_counter()
    found = opened(files, batch=1024, context=2048, index=index, vocab_size=50304)
    first = found.rows(100_001)
    seconds = time.perf_counter() - began
    assert found.updates == range(1, 143_001)
    assert first.shape == (1024, 2049)
    assert first[0].tolist() == marks.tolist()
    assert not first[1:].any()
    assert found.rows(across // 1024 + 1)[across % 1024].tolist() == marks.tolist()
    assert len(found.digest) == 64
    assert seconds < 2
