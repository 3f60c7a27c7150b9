"""OLMo's batches are those that its own data set, its order and its ranks make."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.chunk_files import olmo_files, olmo_indices, olmo_instance, olmo_rank
from lawa.data import indices as module
from lawa.data.batches import Batches, absolute, open_batches
from lawa.errors import LawaError, UsageError

LENGTH = 8  # max_sequence_length


def tokens(*sizes: int, vocab: int = 300) -> list[np.ndarray]:
    return [np.random.default_rng(number).integers(0, vocab, size) for number, size in enumerate(sizes)]


def olmo(
    folder: Path, *sizes: int, dtype: str = "uint16", world: int = 2, epoch: int = 0, **more: Any
) -> dict[str, Any]:
    """Files of these many tokens, and the order that the trainer writes for them."""
    files = olmo_files(folder, tokens(*sizes), dtype)
    count = sum(size // LENGTH for size in sizes)
    order = olmo_indices(folder / "global_indices.npy", count, seed=6198, epoch=epoch, world=world)
    given = {"global_indices": str(order), "files": [str(file) for file in files]}
    return {**given, "batch": 4, "context": LENGTH - 1, "dtype": dtype, **more}


def opened(values: dict[str, Any]) -> Batches:
    return open_batches({"indices": values})


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_batch_is_that_of_the_trainers_ranks(tmp_path: Path, dtype: str, world: int):
    values = olmo(tmp_path, 45, 7, 64, 81, dtype=dtype, world=world)  # 5 + 0 + 8 + 10 instances, and rests
    found = opened(values)
    order = np.fromfile(values["global_indices"], dtype=np.uint32)
    files = [Path(file) for file in values["files"]]
    assert len(order) == 23 // world * world
    assert found.updates == range(1, 6)
    ranks = [olmo_rank(order, 0, rank, world, 4 // world) for rank in range(world)]
    for t in found.updates:
        own = [olmo_instance(files, int(i), LENGTH, dtype) for rank in ranks for i in rank[t - 1]]
        rows = found.rows(t)
        assert rows.dtype == np.int64
        assert sorted(rows.tolist()) == sorted(one.tolist() for one in own)
        in_order = [olmo_instance(files, int(i), LENGTH, dtype).tolist() for i in order[4 * (t - 1) : 4 * t]]
        assert rows.tolist() == in_order
    after = olmo_rank(order, 8, 0, world, 4 // world)  # a run that goes on after update 2
    assert (after[0] == ranks[0][2]).all()


def test_a_part_of_the_list_and_a_later_epoch_begin_where_they_are_said_to(tmp_path: Path):
    whole = opened(olmo(tmp_path, 200))  # 25 instances, 24 in the list
    order = np.fromfile(tmp_path / "global_indices.npy", dtype=np.uint32)
    order[6:23].tofile(tmp_path / "part.npy")
    part = opened(olmo(tmp_path, 200) | {"global_indices": str(tmp_path / "part.npy"), "first": 6})
    assert part.updates == range(3, 6)  # update 2 begins before it, and update 6 ends after it
    for t in part.updates:
        assert (part.rows(t) == whole.rows(t)).all()
    with pytest.raises(LawaError, match=r"update 6 is not in .*part\.npy, which has those of updates 3 to 5"):
        part.rows(6)
    (tmp_path / "next").mkdir()
    later = opened(olmo(tmp_path / "next", 200, epoch=1, first=24))
    assert later.updates == range(7, 13)
    assert (later.rows(7) != whole.rows(1)).any()


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_sizes_and_slices_are_those_of_a_flat_twin(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    draw = data.draw
    folder = tmp_path_factory.mktemp("olmo")
    length, batch = draw(st.integers(2, 6)), draw(st.integers(1, 5))
    sizes = draw(st.lists(st.integers(0, 30), min_size=1, max_size=5))
    parts = tokens(*sizes)
    flat = [part[i : i + length].tolist() for part in parts for i in range(0, len(part) - length + 1, length)]
    order = draw(st.lists(st.integers(0, max(len(flat) - 1, 0)), min_size=batch, max_size=20))
    np.array(order, dtype="<u4").tofile(folder / "order")
    files = [str(file) for file in olmo_files(folder, parts, "uint16")]
    values = {"global_indices": str(folder / "order"), "files": files, "batch": batch, "context": length - 1}
    found = opened(values)
    assert found.updates == range(1, len(order) // batch + 1)
    t, rows = draw(st.sampled_from(found.updates)), draw(st.slices(batch))
    if not flat:
        with pytest.raises(LawaError, match="have 0"):
            found.rows(t)
        return
    assert found.rows(t, rows).tolist() == [flat[i] for i in order[(t - 1) * batch : t * batch][rows]]


def test_only_as_many_files_are_mapped_as_may_be_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    values = olmo(tmp_path, *[3 * LENGTH] * 30)
    whole = opened(values)
    monkeypatch.setattr(module.resource, "getrlimit", lambda _: (8, 8))
    found = opened(values)
    before = len(os.listdir("/proc/self/fd"))
    for t in found.updates:
        assert (found.rows(t) == whole.rows(t)).all()
        assert len(os.listdir("/proc/self/fd")) <= before + 4 + 30  # those of `whole` as well
    assert found._instances.cache_info().currsize == 4  # type: ignore[attr-defined]


def test_the_record_and_the_digest(tmp_path: Path):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    values = olmo(tmp_path / "a", 45, 64)
    found = opened(values)
    told = found.describe()
    assert json.loads(json.dumps(told)) == told
    assert told["kind"] == "indices"
    assert told["instances"] == 13
    assert told["updates"] == [1, 3]
    assert told["order"] == "exact"
    assert "instance_filter" in told["loss"]
    assert told["files"][1] == {"path": values["files"][1], "bytes": 128}
    assert isinstance(found, Batches)

    assert opened(olmo(tmp_path / "b", 45, 64)).digest == found.digest
    assert opened(olmo(tmp_path / "b", 45, 64, batch=3)).digest != found.digest
    assert opened(olmo(tmp_path / "b", 45, 64, epoch=1)).digest != found.digest
    other = olmo(tmp_path / "c", 45, 64)
    ids = np.fromfile(other["files"][1], dtype="<u2")
    ids[-1] += 1
    ids.tofile(other["files"][1])
    assert opened(other).digest != found.digest


def test_an_id_outside_the_vocabulary_is_named(tmp_path: Path):
    values = olmo(tmp_path, 400)
    most = int(np.fromfile(values["files"][0], dtype="<u2")[: 400 // LENGTH * LENGTH].max())
    fine = opened({**values, "vocab_size": most + 1})
    assert max(int(fine.rows(t).max()) for t in fine.updates) == most
    short = opened({**values, "vocab_size": most})
    with pytest.raises(LawaError, match=f"holds the id {most}, and the vocabulary ends at {most - 1}"):
        [short.rows(t) for t in short.updates]


def test_an_instance_beyond_the_files_is_named(tmp_path: Path):
    values = olmo(tmp_path, 64, 64)
    found = opened({**values, "files": values["files"][:1]})
    with pytest.raises(LawaError, match=r"has instance \d+, and the 1 files have 8; give all files"):
        [found.rows(t) for t in found.updates]


def test_what_np_save_wrote_is_refused(tmp_path: Path):
    values = olmo(tmp_path, 64, 64)
    np.save(tmp_path / "saved.npy", np.fromfile(values["global_indices"], dtype="<u4"))
    with pytest.raises(LawaError, match=r"saved\.npy was written by np\.save"):
        opened({**values, "global_indices": str(tmp_path / "saved.npy")})
    np.save(tmp_path / "tokens.npy", np.fromfile(values["files"][1], dtype="<u2"))
    found = opened({**values, "files": [values["files"][0], str(tmp_path / "tokens.npy")]})
    with pytest.raises(LawaError, match=r"tokens\.npy was written by np\.save"):
        [found.rows(t) for t in found.updates]


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"batch": 0}, UsageError, "batch=0"),
        ({"context": 0}, UsageError, "context=0"),
        ({"first": -1}, UsageError, "first=-1"),
        ({"dtype": "float16"}, UsageError, "indices.dtype='float16'"),
        ({"batch": 99}, LawaError, "no whole batch of 99"),
        ({"global_indices": "nowhere"}, LawaError, "nowhere does not exist"),
        ({"files": ["nowhere"]}, LawaError, "nowhere does not exist"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, changed: dict[str, Any], error: type[LawaError], said: str):
    with pytest.raises(error, match=said):
        opened({**olmo(tmp_path, 64, 64), **changed})


@pytest.mark.parametrize("size", [0, 7])
def test_a_list_that_is_cut_off_is_refused(tmp_path: Path, size: int):
    values = olmo(tmp_path, 64, 64)
    os.truncate(values["global_indices"], size)
    with pytest.raises(LawaError, match=f"has {size} bytes, which is no list of uint32"):
        opened(values)


def test_a_list_of_full_size_is_opened_and_entered_at_once(tmp_path: Path):
    """A sparse list of OLMo 2's 10⁹ instances: no time or memory goes with its length."""
    values = olmo(tmp_path, 64, 64)
    with Path(values["global_indices"]).open("r+b") as order:
        order.truncate(4 * 10**9)
        order.seek(4 * 4 * 200_000_000)
        order.write(np.array([3, 1, 12, 0], dtype="<u4").tobytes())
    found = opened(values)
    files = [Path(file) for file in values["files"]]
    assert found.rows(200_000_001).tolist() == [
        olmo_instance(files, i, LENGTH, "uint16").tolist() for i in (3, 1, 12, 0)
    ]
    assert len(found.digest) == 64


def test_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    made = absolute({"indices": olmo(Path(), 64, 64)})
    assert made["indices"]["global_indices"] == str(tmp_path / "global_indices.npy")
    assert made["indices"]["files"][1] == str(tmp_path / "part-1-00000.npy")
    assert open_batches(made).rows(1).shape == (4, LENGTH)
