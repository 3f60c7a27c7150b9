"""GPT-NeoX's index maps, against all documents laid end to end."""

import pickle
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.given_files import Replica, cut, write_index
from lawa.data.batches import Batches, open_batches
from lawa.errors import LawaError, UsageError

LENGTHS = [5, 1, 12, 3, 40, 1, 1, 7, 0, 9, 4, 25]


def opened(replica: Replica, **more: Any) -> Batches:
    given = {"tokens": replica.prefix, "batch": 3, **replica.settings, **more}
    return open_batches({"documents": {name: value for name, value in given.items() if value is not None}})


def literal_twin(replica: Replica, position: int) -> list[int]:
    """Document by document, by the maps and the index, as the module tells it."""
    maps = [np.load(replica.settings[f"{name}_idx"]) for name in ("doc", "sample", "shuffle")]
    documents, samples, shuffled = (one.tolist() for one in maps)
    (first, begin), (last, end) = samples[shuffled[position]], samples[shuffled[position] + 1]
    row = []
    for place in range(first, last + 1):
        ids = replica.documents[documents[place]].tolist()
        row += ids[begin if place == first else 0 : end + 1 if place == last else None]
    return row


def flat(found: Batches) -> list[list[int]]:
    return [row for t in found.updates for row in found.rows(t).tolist()]


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_every_sample_comes_in_the_order_of_the_maps(tmp_path: Path, dtype: str):
    replica = Replica(tmp_path, LENGTHS, context=6, epochs=3, dtype=dtype)
    found = opened(replica, vocab_size=50277)
    assert replica.samples == (3 * sum(LENGTHS) - 1) // 6
    assert found.updates == range(1, (replica.samples - 1) // 3 + 1)
    assert found.rows(1).dtype == np.int64
    rows = flat(found)
    assert rows == replica.stream()[: len(rows)].tolist()
    assert rows == [literal_twin(replica, position) for position in range(len(rows))]


def test_the_last_sample_is_never_read(tmp_path: Path):
    replica = Replica(tmp_path, [19], context=3)  # six samples
    assert opened(replica, batch=5).updates == range(1, 2)
    with pytest.raises(
        LawaError, match=r"_shuffle_idx.npy has the sequences 0 … 4, and no whole batch of 6 among them"
    ):
        opened(replica, batch=6)


@given(
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=12),
    context=st.integers(1, 12),
    epochs=st.integers(1, 3),
    batch=st.integers(1, 4),
    data=st.data(),
)
@settings(deadline=None)
def test_all_documents_cuts_and_rows(lengths: list[int], context: int, epochs: int, batch: int, data: st.DataObject):
    lengths[0] += context * (batch + 2)  # at least one batch
    bound = st.none() | st.integers(-5, 5)
    rows = slice(data.draw(bound), data.draw(bound), data.draw(st.sampled_from([None, 2, -1])))
    with tempfile.TemporaryDirectory() as folder:
        replica = Replica(Path(folder), lengths, context=context, epochs=epochs)
        content = replica.ids.tobytes()
        ends = sorted(data.draw(st.sets(st.integers(1, len(content) - 1), max_size=4)))
        files = cut(Path(folder), content, np.diff([0, *ends]).tolist())
        found = opened(replica, batch=batch, tokens=None, files=files, index=replica.index)
        stream = replica.stream()
        assert len(found.updates) == len(stream) // batch
        for t in found.updates:
            twin = stream[(t - 1) * batch : t * batch][rows]
            got = found.rows(t, rows)
            assert got.shape == twin.shape
            assert got.tolist() == twin.tolist()


def test_a_part_of_the_shuffled_order_keeps_its_numbers(tmp_path: Path):
    replica = Replica(tmp_path, LENGTHS, context=4, epochs=2)
    whole = opened(replica)
    part = tmp_path / "part.npy"
    np.save(part, replica.shuffled[9:16])
    found = opened(replica, shuffle_idx=part, first=9)
    assert found.updates == range(4, 6)
    assert [found.rows(t).tolist() for t in (4, 5)] == [whole.rows(t).tolist() for t in (4, 5)]
    with pytest.raises(LawaError, match=r"update 3 is not in part.npy, which has those of updates 4 to 5"):
        found.rows(3)
    uneven = opened(replica, shuffle_idx=part, first=9, batch=2)
    assert uneven.updates == range(6, 9)
    assert uneven.rows(6).tolist() == opened(replica, batch=2).rows(6).tolist()


def test_maps_of_other_tokens_or_another_context_are_refused(tmp_path: Path):
    replica = Replica(tmp_path, LENGTHS, context=6, epochs=3)
    sentence = r"do not give {} tokens of .*pile.idx for every sequence of update {}; name the maps, tokens and context"
    with pytest.raises(LawaError, match=sentence.format(8, 1)):
        opened(replica, context=7).rows(1)
    write_index(replica.index, [sum(LENGTHS)])  # one document: there is no second
    with pytest.raises(LawaError, match=sentence.format(7, 1)):
        opened(replica).rows(1)
    write_index(replica.index, sorted(LENGTHS))
    with pytest.raises(LawaError, match=sentence.format(7, 1)):
        opened(replica).rows(1)


def test_a_sample_that_runs_past_the_end_of_a_document(tmp_path: Path):
    """It has as many tokens as it must, of two documents that the maps take for one."""
    replica = Replica(tmp_path, [40], context=6)
    assert opened(replica).rows(1).shape == (3, 7)
    write_index(replica.index, [2, 38])
    with pytest.raises(LawaError, match="do not give 7 tokens"):
        opened(replica, batch=5).rows(1)


def test_a_sample_that_is_not_there(tmp_path: Path):
    replica = Replica(tmp_path, LENGTHS, context=6, epochs=3)
    np.save(replica.settings["shuffle_idx"], np.array([0, replica.samples, 1] * 2, dtype=np.uint32))
    with pytest.raises(LawaError, match="do not give 7 tokens"):
        opened(replica).rows(1)
    assert opened(replica).rows(1, slice(0, 1)).tolist() == [replica.flat[:7].tolist()]


def test_maps_that_are_none(tmp_path: Path):
    replica = Replica(tmp_path, LENGTHS, context=6)
    path = replica.settings["sample_idx"]
    for wrong, sentence in (
        (np.zeros(6, dtype=np.int32), r"sample_idx.npy has int32 \[6\], not whole numbers \[n, 2\]; name the map that"),
        (np.zeros((6, 3), dtype=np.int32), r"has int32 \[6, 3\], not whole"),
        (np.zeros((6, 2)), r"has float64 \[6, 2\], not whole"),
        (
            np.array([None, {}]),
            r"sample_idx.npy cannot be read as an array of NumPy's \(.*Python objects.*\); name it, or",
        ),
    ):
        np.save(path, wrong, allow_pickle=True)
        with pytest.raises(LawaError, match=sentence):
            opened(replica)
    for content in (b"", b"PK\3\4", pickle.dumps([1])):
        path.write_bytes(content)
        with pytest.raises(LawaError, match="cannot be read as an array"):
            opened(replica)
    path.unlink()
    with pytest.raises(LawaError, match=r"sample_idx.npy cannot be read as an array of NumPy's \(.*No such file"):
        opened(replica)


def test_tokens_that_are_not_those_of_the_index(tmp_path: Path):
    replica = Replica(tmp_path, LENGTHS, context=6)
    bin_ = tmp_path / "pile.bin"
    bin_.write_bytes(bin_.read_bytes()[:-2])
    with pytest.raises(
        LawaError, match=r"pile.bin has 214 bytes, and .*pile.idx speaks of 216; name all files in order"
    ):
        opened(replica)
    bin_.write_bytes(b"\xff" * 216)
    with pytest.raises(LawaError, match="the batch of update 2 holds the id 65535, and the vocabulary ends at 50276"):
        opened(replica, vocab_size=50277).rows(2)


def test_the_tokens_are_named_in_one_way(tmp_path: Path):
    replica = Replica(tmp_path, LENGTHS, context=6)
    for more in ({"tokens": None}, {"index": "x"}, {"tokens": None, "files": ["x"]}, {"tokens": None, "index": "x"}):
        with pytest.raises(UsageError, match=r"batches.documents needs either tokens .a prefix., or files and index"):
            opened(replica, **more)


def test_digest_and_description(tmp_path: Path):
    replica = Replica(tmp_path, LENGTHS, context=6)
    found = opened(replica)
    digest = found.digest
    assert opened(replica, vocab_size=60000).digest == digest
    assert opened(replica, batch=2).digest != digest
    described = found.describe()
    assert described["kind"] == "documents"
    assert described["updates"] == [1, found.updates[-1]]
    assert described["shuffle_idx"] == {
        "path": str(replica.settings["shuffle_idx"]),
        "bytes": replica.settings["shuffle_idx"].stat().st_size,
    }
    assert described["files"] == [{"path": f"{replica.prefix}.bin", "bytes": 216}]
    assert described["id_0_in_first_batch"] is False
    shuffled = replica.shuffled.copy()
    shuffled[[0, 1]] = shuffled[[1, 0]]
    np.save(replica.settings["shuffle_idx"], shuffled)
    assert opened(replica).digest != digest
