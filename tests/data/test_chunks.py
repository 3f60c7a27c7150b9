"""Amber's and K2's batches are those that their own loaders read, and what is not known of them is said."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.chunk_files import amber_run, chunk_settings, k2_run, rows_of
from lawa.data.batches import Batches, absolute, open_batches
from lawa.data.chunks import chunks_of, k2_order, permutation
from lawa.errors import LawaError, UsageError

VOCAB = 320


def amber(folder: Path, numbers: range = range(3), lines: int = 23, **more: Any) -> dict[str, Any]:
    ids = {number: rows_of(number, lines, 9, VOCAB) for number in numbers}
    return chunk_settings(folder, ids, **{"batch": 4, "vocab_size": VOCAB, "seed": 11111, **more})


def opened(values: dict[str, Any]) -> Batches:
    return open_batches({"chunks": values})


# ---- the runs' own readers


def test_a_process_of_amber_reads_the_same_batches(tmp_path: Path):
    ids = {number: rows_of(number, 23, 9, VOCAB) for number in range(5)}
    values = chunk_settings(tmp_path, ids, batch=4, vocab_size=VOCAB, seed=11111, process_start=2)
    files = {number: values["files"].pop(number) for number in ("0", "1", "2")}
    values["files"]["2"] = files["2"]
    found = opened(values)  # chunks 2, 3 and 4 of 23 examples: 5 updates each, and 3 examples dropped
    assert found.updates == range(11, 26)
    own = amber_run(lambda n: tmp_path / f"train_{n:03}.jsonl", 23, start=2, chunks=5, device=2, world=2)
    assert len(own) == len(found.updates)
    for t, (inputs, labels) in zip(found.updates, own, strict=True):
        rows = found.rows(t)
        assert rows.dtype == np.int64
        assert rows[:, :-1].tolist() == inputs.tolist()
        assert rows[:, 1:].tolist() == labels.tolist()


def test_by_default_each_chunk_is_the_first_of_its_process(tmp_path: Path):
    found = opened(amber(tmp_path))
    for chunk in range(3):
        own = amber_run(
            lambda n: tmp_path / f"train_{n:03}.jsonl", 23, start=chunk, chunks=chunk + 1, device=1, world=4
        )
        for i, (inputs, _) in enumerate(own):
            assert found.rows(5 * chunk + i + 1)[:, :-1].tolist() == inputs.tolist()


def test_what_a_chunk_holds_does_not_depend_on_restarts_and_its_order_does(tmp_path: Path):
    values = amber(tmp_path, lines=24)
    one, other = opened(values), opened({**values, "process_start": 0})
    for chunk in range(3):
        mine, theirs = (
            np.concatenate([found.rows(t) for t in range(6 * chunk + 1, 6 * chunk + 7)]) for found in (one, other)
        )
        assert sorted(mine.tolist()) == sorted(theirs.tolist())
        assert (mine.tolist() == theirs.tolist()) is (chunk == 0)
    assert one.digest != other.digest


def test_k2_reads_chunks_end_to_end_in_its_order(tmp_path: Path):
    order = [2, 0, 1]
    ids = {number: rows_of(number, 10, 8, VOCAB) for number in order}
    values = chunk_settings(tmp_path, ids, batch=4, vocab_size=VOCAB, order=order, drop_tail=False)
    found = opened(values)
    assert found.context == 7  # 8 ids a line: the last one has no label
    assert found.updates == range(1, 8)
    own = k2_run([tmp_path / f"train_{n:03}.jsonl" for n in order], consumed=0, batch=4, micro=1, ranks=2)
    assert [found.rows(t).tolist() for t in found.updates] == list(own)
    assert found.describe()["order"]["within a chunk"].startswith("exact")

    some = opened({**values, "files": {n: values["files"][n] for n in ("0", "1")}})  # without the first of the order
    assert some.updates == range(4, 8)  # update 3 begins in the chunk that is not here
    for t in some.updates:
        assert (some.rows(t) == found.rows(t)).all()


def test_k2s_order_of_chunks_is_that_of_its_code():
    code = list(range(16)) + list(range(32, 32 + 6)) + list(range(44, 44 + 8))
    code.extend([i for i in range(360) if i not in code])
    code = code[:160] + code[161:] + code[160:161]
    code = code[:185] + code[186:] + code[185:186]
    assert k2_order() == code
    assert sorted(k2_order()) == list(range(360))
    assert k2_order()[:31] == [*range(16), *range(32, 38), *range(44, 52), 16]
    assert k2_order()[-2:] == [160, 186]
    assert k2_order(200) == code[:200]


def test_ambers_numbers_are_those_of_the_run():
    amber = {"batch": 2240, "examples": 1_706_976}
    assert 1_706_976 // 2240 == 762
    assert 1_706_976 % 2240 == 96
    assert chunks_of(range(1, 763), **amber) == [0]
    assert chunks_of(range(762, 764), **amber) == [0, 1]
    assert chunks_of(range(359 * 762 + 1, 274_321), **amber) == [359]
    k2 = {"batch": 2040, "examples": 941 * 2040, "drop_tail": False, "order": k2_order()}
    assert chunks_of(range(16 * 941, 16 * 941 + 2), **k2) == [15, 32]
    assert chunks_of(range(338_760, 338_761), **k2) == [186]


def test_the_permutation_is_numpys_legacy_one():
    """Golden: NumPy promises this stream (NEP 19); Amber's first process and its second chunk."""
    assert permutation(10, 11111, 0, 0).tolist() == [3, 2, 8, 0, 1, 5, 7, 9, 6, 4]
    assert permutation(10, 11111, 0, 1).tolist() == [0, 5, 7, 8, 4, 2, 3, 1, 9, 6]


# ---- any sizes


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_sizes_and_slices_are_those_of_a_flat_twin(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    draw = data.draw
    folder = tmp_path_factory.mktemp("chunks")
    batch, width, chunks = draw(st.integers(1, 7)), draw(st.integers(2, 5)), draw(st.integers(1, 4))
    examples = draw(st.integers(batch, 3 * batch + 3))
    drop = draw(st.booleans())
    order = draw(st.permutations(range(chunks + 2)))
    first = draw(st.integers(0, 2))
    places = range(first, min(first + chunks, len(order)))
    ids = {order[place]: rows_of(place, examples, width, 70_000) for place in places}
    values = chunk_settings(folder, ids, batch=batch, vocab_size=70_000, order=list(order), drop_tail=drop)
    n = examples // batch * batch if drop else examples
    flat = {place * n + i: ids[order[place]][i] for place in places for i in range(n)}
    whole = [t for t in range(1, (len(order) + 1) * n) if all((t - 1) * batch + i in flat for i in range(batch))]
    if not whole:
        with pytest.raises(LawaError, match="no whole batch"):
            opened(values)
        return
    found = opened(values)
    assert list(found.updates) == whole
    t = draw(st.sampled_from(whole))
    rows = draw(st.slices(batch))
    twin = [flat[(t - 1) * batch + i].tolist() for i in range(batch)[rows]]
    assert found.rows(t, rows).tolist() == twin
    assert chunks_of(range(t, t + 1), batch=batch, examples=examples, drop_tail=drop, order=order) == list(
        dict.fromkeys(order[((t - 1) * batch + i) // n] for i in range(batch))
    )


# ---- what is said


def test_the_record_says_what_is_known(tmp_path: Path):
    found = opened(amber(tmp_path, process_start=0))
    told = found.describe()
    assert json.loads(json.dumps(told)) == told
    assert told["kind"] == "chunks"
    assert told["updates"] == [1, 15]
    assert told["files"]["2"] == {"path": str(tmp_path / "train_002.jsonl"), "lines": 23}
    assert told["order"]["lines of a chunk"] == "exact"
    assert "known up to restarts" in told["order"]["within a chunk"]
    assert isinstance(found, Batches)


def test_the_digest_is_of_content_and_settings_and_not_of_places(tmp_path: Path):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    base = opened(amber(tmp_path / "a")).digest
    assert opened(amber(tmp_path / "b", cache=str(tmp_path / "cache"))).digest == base
    assert opened(amber(tmp_path / "a", seed=None)).digest != base
    assert opened(amber(tmp_path / "a", batch=3)).digest != base
    ids = {number: rows_of(number, 23, 9, VOCAB) for number in range(3)}
    ids[1][22, 8] ^= 1
    assert opened(chunk_settings(tmp_path / "c", ids, batch=4, vocab_size=VOCAB, seed=11111)).digest != base


def test_an_update_that_is_not_here_is_named(tmp_path: Path):
    found = opened(amber(tmp_path, range(1, 3)))
    for t in (5, 16, 0):
        with pytest.raises(LawaError, match=f"update {t} is not in chunks 1, 2, which has those of updates 6 to 15"):
            found.rows(t)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"batch": 0}, "batch=0"),
        ({"examples": 3}, "examples=3 must be a whole number of at least 4"),
        ({"context": 0}, "context=0"),
        ({"files": {}}, "must map numbers of chunks"),
        ({"files": {"0": "a", "2": "b"}}, "their places in the order are 0, 2"),
        ({"order": [0, 1, 1, 2]}, "names a chunk twice"),
        ({"order": [0, 1]}, "has chunk 2, which"),
        ({"process_start": 1}, "process_start=1 comes after the chunk at place 0"),
        ({"process_start": 0, "seed": None}, "set its seed too"),
        ({"seed": -1}, "seed=-1"),
        ({"shuffle": 1}, "unknown setting batches.chunks.shuffle"),
    ],
)
def test_wrong_settings_are_usage_errors(tmp_path: Path, changed: dict[str, Any], said: str):
    with pytest.raises(UsageError, match=said):
        opened({**amber(tmp_path), **changed})
    assert not list(tmp_path.glob("*.ids"))  # nothing was converted for them


def test_another_number_of_lines_is_refused(tmp_path: Path):
    values = amber(tmp_path)
    with pytest.raises(
        LawaError, match=r"train_000.jsonl has 23 lines, and batches.chunks.examples=24; fetch it whole"
    ):
        opened({**values, "examples": 24})
    assert len(opened({**values, "examples": 21}).updates) == 15  # more lines are left alone, as Amber's loader does
    with pytest.raises(LawaError, match="has 23 lines"):  # but end to end they would shift every batch after them
        opened({**values, "examples": 21, "drop_tail": False, "seed": None})


def test_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    values = amber(Path())
    made = absolute({"chunks": values})
    assert made["chunks"]["files"][0] == str(tmp_path / "train_000.jsonl")
    assert (open_batches(made).rows(1) == opened(values).rows(1)).all()
