"""The averager's state beside a trainer's checkpoint, in one process; several are in tests/averaging/sharded.py."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from averaging import toys
from lawa import EMA, LawaError, RunningMean, WeightAverager, Window
from lawa.checkpoints.averager_state import AveragerState
from lawa.checkpoints.publish import MANIFEST, verify


def make(seed: int = 0) -> tuple[torch.nn.Module, AveragerState]:
    model = toys.Tied(seed=seed)
    averages = {"w": Window(3, every=2), "e": EMA(0.5), "m": RunningMean(start=100)}
    return model, AveragerState(WeightAverager(model, mode="evaluate", averages=averages))


def train(model: torch.nn.Module, state: AveragerState, first: int, last: int) -> None:
    for t in range(first, last + 1):
        toys.wander(model, t)
        state.averager.update()


def values(state: AveragerState) -> dict[str, torch.Tensor]:
    found = state.averager.state_dict()
    return {
        f"{kind} {key} {name}": tensor.clone()
        for kind in ("snapshots", "running")
        for key, tensors in found[kind].items()
        for name, tensor in tensors.items()
    }


def same(left: AveragerState, right: AveragerState) -> bool:
    a, b = values(left), values(right)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("last", [1, 3, 7])
def test_a_fresh_process_goes_on_in_the_middle_of_a_window(last: int, tmp_path: Path) -> None:
    model, state = make()
    train(model, state, 1, last)
    state.save(tmp_path / "lawa")
    other, fresh = make(seed=1)
    fresh.load(tmp_path / "lawa")
    other.load_state_dict(model.state_dict())
    assert same(state, fresh)
    for one, its in ((model, state), (other, fresh)):
        train(one, its, last + 1, 9)
    assert same(state, fresh)
    assert fresh.averager.steps("w") == [4, 6, 8]


def test_a_snapshot_is_written_once_and_outlives_the_state_that_had_it_first(tmp_path: Path) -> None:
    model, state = make()
    train(model, state, 1, 4)
    state.save(tmp_path / "1")
    train(model, state, 5, 6)
    state.save(tmp_path / "2")
    (first,) = (tmp_path / "1/snapshots/00000004").glob("*.distcp")
    (second,) = (tmp_path / "2/snapshots/00000004").glob("*.distcp")
    assert first.stat().st_ino == second.stat().st_ino
    shutil.rmtree(tmp_path / "1")  # as a trainer's save_total_limit does
    verify(tmp_path / "2")
    _, fresh = make()
    fresh.load(tmp_path / "2")
    assert same(state, fresh)


def test_where_the_last_state_is_gone_everything_is_written_anew(tmp_path: Path) -> None:
    model, state = make()
    train(model, state, 1, 4)
    state.save(tmp_path / "1")
    shutil.rmtree(tmp_path / "1")
    state.save(tmp_path / "2")
    _, fresh = make()
    fresh.load(tmp_path / "2")
    assert same(state, fresh)


def test_loaded_snapshots_are_linked_too(tmp_path: Path) -> None:
    model, state = make()
    train(model, state, 1, 4)
    state.save(tmp_path / "1")
    other, fresh = make()
    fresh.load(tmp_path / "1")
    train(other, fresh, 5, 6)
    fresh.save(tmp_path / "2")
    (first,) = (tmp_path / "1/snapshots/00000002").glob("*.distcp")
    assert first.stat().st_nlink == 2


def test_saving_again_takes_the_place(tmp_path: Path) -> None:
    model, state = make()
    train(model, state, 1, 2)
    state.save(tmp_path / "lawa")
    train(model, state, 3, 4)
    state.save(tmp_path / "lawa")
    _, fresh = make()
    fresh.load(tmp_path / "lawa")
    assert fresh.averager.step == 4
    assert same(state, fresh)
    assert [entry.name for entry in tmp_path.iterdir()] == ["lawa"]


def test_a_damaged_state_changes_nothing(tmp_path: Path) -> None:
    model, state = make()
    train(model, state, 1, 4)
    state.save(tmp_path / "lawa")
    (file,) = (tmp_path / "lawa/snapshots/00000002").glob("*.distcp")
    file.write_bytes(file.read_bytes()[:-1])
    before = values(state)
    with pytest.raises(LawaError, match=r"00000002/.* it is damaged"):
        state.load(tmp_path / "lawa")
    after = values(state)
    assert all(torch.equal(before[name], after[name]) for name in before)
    (tmp_path / "lawa" / MANIFEST).unlink()
    with pytest.raises(LawaError, match="never finished"):
        state.load(tmp_path / "lawa")
    with pytest.raises(LawaError, match="in the way"):
        state.save(tmp_path / "lawa")


def test_after_a_rollback_the_snapshots_of_the_same_updates_are_written_anew(tmp_path: Path) -> None:
    model, state = make()
    train(model, state, 1, 4)
    before = state.averager.state_dict()
    kept = {"meta": before["meta"], "snapshots": {}, "running": {}}
    for kind in ("snapshots", "running"):
        kept[kind] = {key: {n: x.clone() for n, x in one.items()} for key, one in before[kind].items()}
    train(model, state, 5, 6)
    state.save(tmp_path / "1")
    state.averager.load_state_dict(kept)
    toys.fill(model, 0.5)
    train(model, state, 5, 6)
    state.save(tmp_path / "2")
    _, fresh = make()
    fresh.load(tmp_path / "2")
    assert same(state, fresh)
    loaded = AveragerState(state.averager)
    loaded.load(tmp_path / "2")
    toys.fill(model, 0.25)
    train(model, state, 7, 8)
    loaded.save(tmp_path / "3")
    fresh.load(tmp_path / "3")
    assert same(state, fresh)


def test_an_older_state_stays_until_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, state = make()
    train(model, state, 1, 2)
    state.save(tmp_path / "lawa")
    kept = values(state)
    train(model, state, 3, 4)

    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("lawa.checkpoints.publish.write_manifest", full)
        with pytest.raises(OSError, match="No space left"):
            state.save(tmp_path / "lawa")
    _, fresh = make()
    fresh.load(tmp_path / "lawa")
    assert all(torch.equal(kept[name], tensor) for name, tensor in values(fresh).items())
    state.save(tmp_path / "lawa")
    fresh.load(tmp_path / "lawa")
    assert fresh.averager.step == 4


def test_a_state_of_other_averages_is_refused_before_anything_is_let_go(tmp_path: Path) -> None:
    model, state = make()
    train(model, state, 1, 4)
    state.save(tmp_path / "lawa")
    other = AveragerState(WeightAverager(model, mode="evaluate", averages={"other": EMA(0.5)}))
    other.averager.update()
    before = values(other)
    with pytest.raises(LawaError, match="make it with the same averages"):
        other.load(tmp_path / "lawa")
    assert before
    assert all(torch.equal(before[name], tensor) for name, tensor in values(other).items())
    assert other.averager.count("other") == 1


def test_a_smaller_window_takes_room_for_what_it_holds(tmp_path: Path) -> None:
    model, state = make()
    train(model, state, 1, 6)
    state.save(tmp_path / "lawa")
    averages = {"w": Window(1, every=2), "e": EMA(0.5), "m": RunningMean(start=100)}
    small = AveragerState(WeightAverager(model, mode="evaluate", averages=averages))
    made: list[int] = []
    empty = small.averager._store.empty
    small.averager._store.empty = lambda step: made.append(step) or empty(step)  # type: ignore[method-assign]
    small.load(tmp_path / "lawa")
    assert made == [6]
    assert small.averager.steps("w") == [6]
