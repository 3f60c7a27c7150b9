"""Snapshots on disk: the same bits as elsewhere, a budget that is kept, a full disk that is said in time."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import lawa
from averaging import toys
from lawa import LawaError, WeightAverager, Window
from lawa.averaging import placement as placements
from lawa.averaging import spill
from lawa.averaging.spill import Mapped, SpillStore

SNAPSHOT = 4 * (48 + 16 + 16)  # bytes of toys.Tied: each entry begins a cache line


def trained(folder: Path, **settings: Any) -> tuple[torch.nn.Module, WeightAverager]:
    """After 7 updates; of each window's snapshots some have been let go."""
    model = toys.Tied()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    averages = {"w": Window(3, every=1), "long": Window(2, every=3, coefficients="linear")}
    if settings.get("placement") != "device":
        settings = {"folder": folder, **settings}
    averager = WeightAverager(model, optimizer, averages=averages, replace_with="w", mode="replace", **settings)
    for t in range(1, 8):
        toys.train_step(model, optimizer, t)
        averager.update()
    return model, averager


def lies_on_disk(averager: WeightAverager) -> dict[int, bool]:
    held = averager._collection.windows.snapshots()
    return {one.step: isinstance(one.snapshot, Mapped) for one in held}


@pytest.mark.parametrize("staged", [False, True], ids=["at once", "behind training"])
@pytest.mark.parametrize("budget", [None, 0, SNAPSHOT, 2 * SNAPSHOT + 1], ids=["disk", "0", "1", "2"])
def test_the_bits_are_those_of_device_placement(
    budget: int | None, staged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if staged:
        monkeypatch.setattr(spill, "_behind_training", lambda layout: True)
    model, there = trained(tmp_path, placement="device")
    settings = {"placement": "disk"} if budget is None else {"placement": "host", "host_bytes": budget}
    if staged and budget == 0:
        with pytest.raises(LawaError, match="less than the 320 B of one snapshot on its way"):
            trained(tmp_path, **settings)
        return
    other, averager = trained(tmp_path, **settings)
    assert toys.same_weights(toys.weights(model), toys.weights(other))
    for name in ("w", "long"):
        assert toys.same_weights(toys.seen_by(there, name), toys.seen_by(averager, name))
    on_disk = lies_on_disk(averager)
    assert sorted(on_disk) == [3, 5, 6, 7]
    assert sum(not disk for disk in on_disk.values()) == max(0, (budget or 0) // SNAPSHOT - staged)
    assert list(tmp_path.iterdir()) == [], "the files have no names: nothing is left, however the process ends"


def test_memory_that_was_freed_serves_again(tmp_path: Path) -> None:
    _, averager = trained(tmp_path, placement="host", host_bytes=SNAPSHOT)
    mapped = [0]
    original = averager._store._map  # type: ignore[attr-defined]

    def count(group: Any) -> torch.Tensor:
        mapped[0] += 1
        return original(group)

    averager._store._map = count  # type: ignore[attr-defined]
    for _ in range(10):
        averager.update()
    assert mapped == [0]


def test_training_goes_on_while_a_snapshot_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written is the captured value, and who reads waits for it."""
    go = threading.Event()
    monkeypatch.setattr(spill, "_behind_training", lambda layout: True)
    model = toys.linear((1.0, 2.0, 3.0))
    averager = WeightAverager(model, mode="evaluate", every=1, window=2, placement="disk", folder=tmp_path)
    store = averager._store
    assert isinstance(store, SpillStore)
    monkeypatch.setattr(store._host, "settle", go.wait)
    averager.update()
    toys.fill(model, 9.0)
    go.set()
    with averager.averaged():
        assert model.weight.tolist() == [[1.0, 2.0, 3.0]]


def test_a_state_goes_on_in_another_placement(tmp_path: Path) -> None:
    _, there = trained(tmp_path, placement="disk")
    model, here = trained(tmp_path, placement="device")
    fresh = WeightAverager(
        model, averages=here.averages, replace_with="w", mode="replace", placement="host", host_bytes=SNAPSHOT,
        folder=tmp_path,
    )  # fmt: skip
    fresh.load_state_dict(there.state_dict())
    assert list(lies_on_disk(fresh).values()).count(False) == 1
    assert toys.same_weights(toys.seen_by(there, "w"), toys.seen_by(fresh, "w"))


def test_the_estimate_says_what_lies_where_and_makes_no_folder(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"mode": "evaluate", "every": 1, "window": 10}
    cost = lawa.estimate(
        toys.Tied(), placement="host", host_bytes=3 * SNAPSHOT + 5, folder=tmp_path / "snapshots", **settings
    )
    assert (cost.device, cost.host, cost.spilled, cost.disk) == (0, 3 * SNAPSHOT, 7 * SNAPSHOT, 10 * SNAPSHOT)
    assert "2.2 kB on disk" in str(cost)
    cost = lawa.estimate(toys.Tied(), placement="disk", folder=tmp_path / "snapshots", **settings)
    assert (cost.host, cost.spilled) == (0, 10 * SNAPSHOT)
    assert not (tmp_path / "snapshots").exists()


def test_pinned_memory_is_counted_as_torch_rounds_it() -> None:
    from lawa.averaging.layout import Group
    from lawa.averaging.stores import host_nbytes

    for device, nbytes in (("cuda", 1 << 20), ("cpu", 4 * 200_000)):
        assert host_nbytes(Group(torch.device(device), torch.float32, numel=200_000)) == nbytes
    assert host_nbytes(Group(torch.device("cuda"), torch.float32, numel=1 << 18)) == 1 << 20
    assert host_nbytes(Group(torch.device("cuda"), torch.float32)) == 0


def test_a_full_disk_is_said_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = type("Usage", (), {"free": 900})
    monkeypatch.setattr(placements.shutil, "disk_usage", lambda _: free)
    with pytest.raises(LawaError, match=r"snapshots take 1\.3 kB in .*deep/er, where 900 B are free; name another"):
        trained(tmp_path / "deep/er", placement="disk")


def test_a_disk_that_fills_later_is_one_sentence_and_loses_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toys.Tied()
    averager = WeightAverager(model, mode="evaluate", every=1, window=3, placement="disk", folder=tmp_path)
    averager.update()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(spill, "reserve", full)
    before = toys.weights(model)
    with pytest.raises(LawaError, match=r"no room for the 320 B of a snapshot \(No space left on device\); free some"):
        averager.update()
    assert toys.same_weights(before, toys.weights(model))
    assert averager.steps() == [1]
    assert averager.step == 1, "the update can be made again"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"placement": "disk"}, "placement='disk' needs a folder"),
        ({"placement": "device", "folder": "x"}, "folder is for snapshots on disk; with placement='device' leave it"),
        ({"placement": "device", "host_bytes": 5}, "host_bytes is the budget of placement='host'; with 'device'"),
        ({"placement": "host", "host_bytes": -1}, "host_bytes=-1 must be a whole number of bytes"),
        ({"placement": "host", "host_bytes": 600}, r"3 snapshots take 960 B on the host, and host_bytes allows 600 B"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(LawaError, match=sentence):
        WeightAverager(toys.Tied(), mode="evaluate", every=1, window=3, **settings)


def test_a_budget_that_holds_everything_needs_no_folder() -> None:
    averager = WeightAverager(
        toys.Tied(), mode="evaluate", every=1, window=3, placement="host", host_bytes=3 * SNAPSHOT
    )
    assert averager.cost().host == 3 * SNAPSHOT


def test_a_folder_that_is_a_file_is_said_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "inside"):
        with pytest.raises(LawaError, match="is no folder that one may write in"):
            WeightAverager(toys.Tied(), mode="evaluate", every=1, placement="disk", folder=folder)


def test_an_estimate_is_given_where_there_is_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placements.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 0}))
    settings: dict[str, Any] = {"mode": "evaluate", "every": 1, "window": 3}
    assert lawa.estimate(toys.Tied(), placement="disk", folder=tmp_path, **settings).spilled == 3 * SNAPSHOT
    assert lawa.estimate(toys.Tied(), placement="host", host_bytes=1, **settings).host == 3 * SNAPSHOT


def test_a_model_on_meta_counts_as_one_on_a_gpu(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = torch.nn.Linear(100, 100)
    cost = lawa.estimate(model, mode="evaluate", every=1, window=3, placement="host")
    assert cost.host == 3 * 65536, "40,448 bytes, pinned: a power of two"
    cost = lawa.estimate(model, mode="evaluate", every=1, window=3, placement="disk", folder=tmp_path)
    assert cost.host == 65536, "through which each goes to the disk"
