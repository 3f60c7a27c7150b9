"""Files laid end to end, against one flat array."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.given_files import cut
from lawa.data import shards
from lawa.data.shards import DTYPES, Shards, widen
from lawa.errors import LawaError

U2 = np.dtype("<u2")


@given(data=st.data(), name=st.sampled_from(sorted(DTYPES)))
@settings(deadline=None)
def test_any_stretches_of_any_files_are_those_of_one_array(data: st.DataObject, name: str):
    """Cut at any byte, within tokens too."""
    dtype = np.dtype(DTYPES[name])
    content = data.draw(st.binary(min_size=40, max_size=80))
    whole = st.integers(0, len(content))
    ends = sorted(data.draw(st.sets(st.integers(1, len(content) - 1), max_size=6)))
    stretches = []
    for begin, end in data.draw(st.lists(st.tuples(whole, whole), max_size=5)):
        stretches.append((min(begin, end), abs(end - begin) // dtype.itemsize))
    with tempfile.TemporaryDirectory() as folder:
        found = Shards(cut(Path(folder), content, np.diff([0, *ends]).tolist()), dtype)
        ids = found.read([begin for begin, _ in stretches], [tokens for _, tokens in stretches])
        twin = b"".join(content[begin : begin + tokens * dtype.itemsize] for begin, tokens in stretches)
        assert found.bytes == len(content)
        assert ids.dtype == dtype
        assert ids.tobytes() == twin
        assert found.sample() == content


def test_nothing_is_copied_within_a_file_and_nothing_is_written(tmp_path: Path):
    found = Shards(cut(tmp_path, bytes(range(40)), [20]), U2)
    ids = found.read([4], [6])
    assert ids.base is not None
    assert not ids.flags.writeable
    assert found.read([18], [2]).tolist() == [18 + 256 * 19, 20 + 256 * 21]


def test_a_large_sample_comes_from_all_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shards, "_SAMPLES", 3)
    monkeypatch.setattr(shards, "_SAMPLE", 4)
    found = Shards(cut(tmp_path, bytes(range(101)), [7, 50]), U2)
    assert list(found.sample()) == [0, 1, 2, 3, 48, 49, 50, 51, 97, 98, 99, 100]


def test_what_is_not_in_the_files_is_refused(tmp_path: Path):
    files = cut(tmp_path, bytes(20), [7])
    found = Shards(files, U2)
    assert found.read([0, 20], [10, 0]).tolist() == [0] * 10
    for offsets, tokens in (([0], [11]), ([-2], [1]), ([4], [-1]), ([22], [0])):
        with pytest.raises(LawaError, match=r"are wanted of .*00000-of-00001.bin … document-00001-of-00001.bin, which"):
            found.read(offsets, tokens)
    files[1].unlink()
    with pytest.raises(LawaError, match=r"00001-of-00001.bin does not exist; fetch it, or correct its name"):
        Shards(files, U2)
    files[1].touch()
    with pytest.raises(LawaError, match=r"00001-of-00001.bin is empty; fetch it anew"):
        Shards(files, U2)


def test_ids_are_compared_with_the_vocabulary():
    ids = np.array([[1, 2, 299], [0, 1, 1]], dtype=np.int32)
    rows = widen(ids.ravel(), 2, 300, "batch")
    assert rows.dtype == np.int64
    assert rows.tolist() == ids.tolist()
    assert widen(-ids, 2, None, "batch").min() == -299
    assert widen(ids[:0], 2, 1, "batch").shape == (0, 3)
    with pytest.raises(LawaError, match="it holds the id 299, and the vocabulary ends at 298; correct vocab_size"):
        widen(ids, 2, 299, "it")
    with pytest.raises(LawaError, match="it holds the id -1, and"):
        widen(ids - 2, 2, 300, "it")
