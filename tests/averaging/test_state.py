"""Stop anywhere, go on in a fresh process: equal bits, also in the middle of a window."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn

from averaging import toys
from lawa import EMA, RunningMean, WeightAverager, Window
from lawa.averaging.layout import Layout
from lawa.averaging.stores import DeviceStore
from lawa.errors import LawaError

LAST = 11
Weights = dict[str, np.ndarray]

# torch says that it saves in one process, which is what these tests want.
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")

SETTINGS: dict[str, dict[str, Any]] = {
    "evaluate": {"mode": "evaluate", "every": 2, "window": 3},
    "slide": {"mode": "replace", "every": 1, "window": 3},
    "clear": {"mode": "replace", "every": 2, "window": 2, "after_replace": "clear"},
    "every third, until 7": {"mode": "replace", "every": 1, "window": 2, "replace_every": 3, "replace_until": 8},
    "strength": {"mode": "replace", "every": 1, "window": 3, "strength": 0.3, "coefficients": "linear"},
    "moments averaged": {"mode": "replace", "every": 1, "window": 3, "moments": "average"},
    "moments reset": {"mode": "replace", "every": 2, "window": 2, "moments": "reset"},
    "host": {"mode": "replace", "every": 1, "window": 3, "placement": "host"},
    "many": {
        "mode": "replace",
        "averages": {
            "w": Window(3, every=2),
            "short": Window(2, every=1, stop=5),
            "e": EMA(0.7),
            "m": RunningMean(every=2, start=3),
            "late": RunningMean(start=9),
        },
        "replace_with": "w",
    },
    "EMA replaces": {"mode": "replace", "averages": {"e": EMA(0.7)}, "replace_every": 3},
}


class Run:
    """A model, its optimizer and an averager: everything that a checkpoint holds."""

    def __init__(self, *, dtype: torch.dtype = torch.float32, **settings: Any) -> None:
        self.model = toys.Tied(dtype=dtype)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.05)
        self.averager = WeightAverager(self.model, self.optimizer, **settings)

    def go(self, first: int, last: int) -> Run:
        """Updates first … last, in the order of trainers: what is due is carried out when the next update begins."""
        for t in range(first, last + 1):
            self.averager.replace_if_due()
            toys.train_step(self.model, self.optimizer, t)
            self.averager.capture(t)
        return self

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "averager": self.averager.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> Run:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.averager.load_state_dict(state["averager"])
        return self

    def end(self) -> dict[str, Weights]:
        """All that can be seen of it, after what is pending is carried out."""
        pending, averager = self.averager.replacement_pending, self.averager
        averager.replace_if_due()
        seen = {
            "weights": toys.weights(self.model),
            "settled": {"pending": np.float64(pending), "last": np.float64(averager.last_replacement or 0)},
            "counts": {name: np.float64([averager.count(name), *averager.steps(name)]) for name in averager.averages},
        }
        for parameter, moments in self.optimizer.state_dict()["state"].items():
            seen[f"optimizer {parameter}"] = {key: value.double().numpy() for key, value in moments.items()}
        return seen | {name: toys.seen_by(averager, name) for name in averager.averages if averager.count(name)}


def through_torch_save(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def same(left: dict[str, Weights], right: dict[str, Weights]) -> bool:
    return left.keys() == right.keys() and all(toys.same_weights(left[key], right[key]) for key in left)


# ---- torch.save


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_stopped_at_any_update_and_resumed_it_ends_with_the_same_bits(dtype: torch.dtype, settings: Any) -> None:
    """θ, Adam's moments, windows, EMA, the last replacement and a pending one; straight against stop and go."""
    straight = Run(dtype=dtype, **settings).go(1, LAST).end()
    stopped = Run(dtype=dtype, **settings)
    pending = 0
    for stop in range(LAST):
        stopped.go(stop, stop) if stop else None
        pending += stopped.averager.replacement_pending
        saved = through_torch_save(stopped.state())
        resumed = Run(dtype=dtype, **settings).load(saved).go(stop + 1, LAST)
        assert same(resumed.end(), straight), f"stopped after update {stop}"
    assert pending or settings["mode"] == "evaluate", "some stops fall between a capture and its replacement"


def test_a_state_without_snapshots_can_be_loaded() -> None:
    settings = SETTINGS["many"]
    fresh = Run(**settings)
    resumed = Run(**settings).load(through_torch_save(fresh.state()))
    assert resumed.averager.step == 0
    assert same(resumed.go(1, 3).end(), Run(**settings).go(1, 3).end())


def test_its_plain_values_are_one_json_text_and_its_tensors_have_the_models_names_and_dtypes() -> None:
    run = Run(dtype=torch.bfloat16, **SETTINGS["many"]).go(1, 5)
    state = run.averager.state_dict()
    meta = json.loads(state["meta"])
    assert list(meta.pop("rules")) == ["w", "short", "e", "m", "late"]
    assert meta == {
        "step": 5, "pending": None, "last_replacement": None, "windows": {"w": [2, 4], "short": [4, 5]},
        "running": {"e": 5, "m": 1, "late": 0}, "skipped": [], "form": "whole",
    }  # fmt: skip
    assert list(state["snapshots"]) == ["00000002", "00000004", "00000005"]
    for snapshot in state["snapshots"].values():
        assert set(snapshot) == {"embed.weight", "inner.weight", "inner.bias"}
        assert {tensor.dtype for tensor in snapshot.values()} == {torch.bfloat16}
    assert set(state["running"]) == {"e", "m"}
    assert state["running"]["e"]["embed.weight"].dtype == torch.float32


def test_a_marked_snapshot_stays_marked() -> None:
    run = Run(mode="evaluate", every=1, window=3)
    run.averager.update()
    run.averager.update(skipped=True)
    resumed = Run(mode="evaluate", every=1, window=3)
    resumed.averager.load_state_dict(through_torch_save(run.averager.state_dict()))
    assert json.loads(resumed.averager.state_dict()["meta"])["skipped"] == [2]


def test_a_saved_state_is_not_changed_by_what_is_loaded_from_it() -> None:
    run = Run(mode="evaluate", averages={"w": Window(2, every=1), "e": EMA(0.5)}).go(1, 3)
    saved = through_torch_save(run.averager.state_dict())
    before = copy.deepcopy(saved)
    other = Run(mode="evaluate", averages={"w": Window(2, every=1), "e": EMA(0.5)})
    other.averager.load_state_dict(saved)
    other.go(4, 6)
    for kind in ("snapshots", "running"):
        for key, tensors in before[kind].items():
            for name, tensor in tensors.items():
                assert torch.equal(saved[kind][key][name], tensor), (kind, key, name)


def test_loading_its_own_state_changes_nothing() -> None:
    run = Run(**SETTINGS["many"]).go(1, 6)
    before = copy.deepcopy(run.averager.state_dict())
    run.averager.load_state_dict(run.averager.state_dict())
    after = run.averager.state_dict()
    assert after["meta"] == before["meta"]
    for kind in ("snapshots", "running"):
        assert after[kind].keys() == before[kind].keys()
        for key, tensors in before[kind].items():
            assert all(torch.equal(after[kind][key][name], tensor) for name, tensor in tensors.items())
    assert same(run.go(7, LAST).end(), Run(**SETTINGS["many"]).go(1, LAST).end())


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_going_back_in_the_same_process(settings: Any) -> None:
    """A loss spike: the run goes back to its last checkpoint, with an averager that has gone on."""
    run = Run(**settings).go(1, 4)
    saved = copy.deepcopy(run.state())
    run.go(5, 9)
    run.load(saved)
    assert same(run.go(5, LAST).end(), Run(**settings).go(1, LAST).end())


# ---- other windows


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
def test_a_window_of_another_size_takes_the_latest_it_can_hold(size: int) -> None:
    saved = through_torch_save(Run(mode="evaluate", every=1, window=4).go(1, 6).averager.state_dict())
    other = Run(mode="evaluate", every=1, window=size)
    other.averager.load_state_dict(saved)
    assert other.averager.steps() == [3, 4, 5, 6][-size:]
    assert other.averager.ready() == (size <= 4)
    for held in other.averager.steps():
        key = f"{held:08d}"
        assert torch.equal(
            other.averager.state_dict()["snapshots"][key]["inner.weight"], saved["snapshots"][key]["inner.weight"]
        )
    other.averager.update()
    assert other.averager.steps() == [3, 4, 5, 6, 7][-size:]


def test_memory_of_a_larger_window_is_let_go() -> None:
    saved = through_torch_save(Run(mode="evaluate", every=1, window=6).go(1, 6).averager.state_dict())
    other = Run(mode="evaluate", every=1, window=2)
    memory = toys.Memory()
    with memory:
        other.averager.load_state_dict(saved)
    assert memory.alive == other.averager.cost().host


def test_memory_that_is_there_already_is_used() -> None:
    run = Run(mode="evaluate", averages={"w": Window(3, every=1), "e": EMA(0.5)}).go(1, 4)
    saved = through_torch_save(run.averager.state_dict())
    run.go(5, 9)
    memory = toys.Memory()
    with memory:
        run.averager.load_state_dict(saved)
    assert memory.ops > 0
    assert memory.new == 0


# ---- what does not fit is refused, and nothing has changed


def loads(**settings: Any) -> tuple[Run, Callable[[], Any]]:
    """A run that has gone on for a while, and a look at all it has."""
    run = Run(**settings).go(1, 3)
    return run, lambda: copy.deepcopy((run.averager.state_dict(), toys.weights(run.model)))


def unchanged(before: Any, after: Any) -> bool:
    (left, weights), (right, weights_now) = before, after
    return (
        left["meta"] == right["meta"]
        and toys.same_weights(weights, weights_now)
        and all(
            torch.equal(tensor, right[kind][key][name])
            for kind in ("snapshots", "running")
            for key, tensors in left[kind].items()
            for name, tensor in tensors.items()
        )
    )


def without(state: dict[str, Any], *path: str) -> dict[str, Any]:
    state = copy.deepcopy(state)
    at = state
    for key in path[:-1]:
        at = at[key]
    del at[path[-1]]
    return state


def with_tensor(state: dict[str, Any], kind: str, key: str, name: str, tensor: torch.Tensor) -> dict[str, Any]:
    state = copy.deepcopy(state)
    state[kind][key][name] = tensor
    return state


AVERAGES = {"w": Window(2, every=1), "e": EMA(0.5)}
WRONG: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a missing tensor": (
        lambda state: without(state, "snapshots", "00000006", "inner.bias"),
        r"the saved snapshot of update 6: tensor 'inner\.bias' is missing",
    ),
    "a reshaped tensor": (
        lambda state: with_tensor(state, "snapshots", "00000005", "inner.bias", torch.zeros(5)),
        r"the saved snapshot of update 5: tensor 'inner\.bias' has shape \(5,\) where the model has \(4,\)",
    ),
    "an extra tensor": (
        lambda state: with_tensor(state, "snapshots", "00000006", "inner.extra", torch.zeros(5)),
        r"update 6: tensor 'inner\.extra' is not in the model",
    ),
    "a missing snapshot": (
        lambda state: without(state, "snapshots", "00000005"),
        r"lacks the snapshot of update 5; before dcp\.load, a fresh averager needs prepare_to_load",
    ),
    "a missing EMA": (
        lambda state: without(state, "running", "e"),
        r"lacks the average 'e'; before dcp\.load, a fresh averager needs prepare_to_load",
    ),
    "a reshaped EMA": (
        lambda state: with_tensor(state, "running", "e", "inner.weight", torch.zeros(3)),
        r"the saved average 'e': tensor 'inner\.weight' has shape \(3,\)",
    ),
    "no averager's state at all": (
        lambda state: {"inner.weight": torch.zeros(4, 4)},
        r"this is no averager's state: it has \['inner\.weight'\], and no 'meta'",
    ),
    "an EMA under another name": (
        lambda state: {**state, "meta": state["meta"].replace('"e"', '"f"')},
        r"the saved state has the averages \['f', 'w'\], this averager \['e', 'w'\]",
    ),
    "a window under another name": (
        lambda state: {**state, "meta": state["meta"].replace('"w"', '"v"')},
        r"the saved state has the averages \['e', 'v'\], this averager \['e', 'w'\]",
    ),
}


@pytest.mark.parametrize(("damage", "sentence"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_named_and_nothing_has_changed(damage: Any, sentence: str) -> None:
    saved = Run(mode="evaluate", averages=AVERAGES).go(1, 6).averager.state_dict()
    run, look = loads(mode="evaluate", averages=AVERAGES)
    before = look()
    with pytest.raises(LawaError, match=sentence):
        run.averager.load_state_dict(damage(saved))
    assert unchanged(before, look())
    run.averager.load_state_dict(saved)
    assert run.averager.steps("w") == [5, 6]


def test_averages_of_another_kind_under_the_same_name_are_refused() -> None:
    saved = Run(mode="evaluate", averages={"a": Window(2, every=1)}).go(1, 2).averager.state_dict()
    with pytest.raises(LawaError, match="make it with the same averages"):
        Run(mode="evaluate", averages={"a": EMA(0.5)}).averager.load_state_dict(saved)


def test_another_models_state_is_refused() -> None:
    saved = Run(mode="evaluate", every=1, window=1).go(1, 1).averager.state_dict()
    other = WeightAverager(nn.Linear(2, 2), mode="evaluate", every=1, window=1)
    with pytest.raises(LawaError, match="tensor 'weight' is missing; is it the same model"):
        other.load_state_dict(saved)


def test_moments_must_be_in_both_or_in_neither() -> None:
    averaged, kept = ({"mode": "replace", "every": 1, "window": 2, "moments": m} for m in ("average", "keep"))
    with pytest.raises(LawaError, match=r"tensor 'exp_avg\.embed\.weight' is not in the model"):
        Run(**kept).averager.load_state_dict(Run(**averaged).go(1, 1).averager.state_dict())
    with pytest.raises(LawaError, match=r"tensor 'exp_avg\.embed\.weight' is missing"):
        Run(**averaged).averager.load_state_dict(Run(**kept).go(1, 1).averager.state_dict())


def test_a_pending_replacement_cannot_be_lost_on_an_averager_that_only_evaluates() -> None:
    run = Run(mode="replace", every=1, window=2).go(1, 2)
    assert run.averager.replacement_pending
    other, look = loads(mode="evaluate", every=1, window=2)
    before = look()
    with pytest.raises(LawaError, match=r"a replacement pending since update 2.*make it with mode='replace'"):
        other.averager.load_state_dict(run.averager.state_dict())
    assert unchanged(before, look())
    run.averager.replace_if_due()
    other.averager.load_state_dict(run.averager.state_dict())
    assert other.averager.steps() == [1, 2]


def test_resuming_without_the_averagers_state_is_an_error_at_the_first_update() -> None:
    run = Run(mode="replace", every=1, window=2).go(1, 2)
    with pytest.raises(LawaError, match=r"steps only grow\. On resume, load the averager's state"):
        run.averager.capture(1)


# ---- torch DCP


def save(run: Run, folder: Path) -> Path:
    dcp.save({"averager": run.averager}, checkpoint_id=folder, no_dist=True)
    return folder


def load(run: Run, folder: Path, *, prepare: bool = True) -> None:
    if prepare:
        run.averager.prepare_to_load(folder)
    dcp.load({"averager": run.averager}, checkpoint_id=folder, no_dist=True)


def others(run: Run) -> dict[str, Any]:
    """Model and optimizer, which are not what these tests are about."""
    return copy.deepcopy({"model": run.model.state_dict(), "optimizer": run.optimizer.state_dict()})


@pytest.mark.parametrize("stop", [0, 1, 4, 7])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_dcp_carries_a_fresh_averager_into_the_middle_of_a_window(settings: Any, stop: int, tmp_path: Path) -> None:
    """A fresh averager holds no tensors that DCP could load into: prepare_to_load makes room from the metadata."""
    run = Run(**settings).go(1, stop)
    folder, rest = save(run, tmp_path / "c"), others(run)
    resumed = Run(**settings)
    resumed.model.load_state_dict(rest["model"])
    resumed.optimizer.load_state_dict(rest["optimizer"])
    load(resumed, folder)
    assert resumed.averager.step == stop
    assert same(resumed.go(stop + 1, LAST).end(), Run(**settings).go(1, LAST).end())


@pytest.mark.parametrize("settings", [SETTINGS["slide"], SETTINGS["many"]], ids=["slide", "many"])
def test_dcp_goes_back_in_the_same_process(settings: Any, tmp_path: Path) -> None:
    """The averager holds snapshots by then that the checkpoint has never seen, and lacks some that it has."""
    run = Run(**settings).go(1, 4)
    folder, rest = save(run, tmp_path / "c"), others(run)
    run.go(5, 9)
    run.model.load_state_dict(rest["model"])
    run.optimizer.load_state_dict(rest["optimizer"])
    load(run, folder)
    assert same(run.go(5, LAST).end(), Run(**settings).go(1, LAST).end())


def test_dcp_loads_in_place_and_copies_nothing_twice(tmp_path: Path) -> None:
    folder = save(Run(mode="evaluate", every=1, window=3).go(1, 5), tmp_path / "c")
    fresh = Run(mode="evaluate", every=1, window=3)
    fresh.averager.prepare_to_load(folder)
    places = {key: t["inner.weight"].data_ptr() for key, t in fresh.averager.state_dict()["snapshots"].items()}
    assert list(places) == ["00000003", "00000004", "00000005"]
    load(fresh, folder, prepare=False)
    assert places == {key: t["inner.weight"].data_ptr() for key, t in fresh.averager.state_dict()["snapshots"].items()}
    fresh.go(6, 7)
    assert list(fresh.averager.state_dict()["snapshots"]) == ["00000005", "00000006", "00000007"]


@pytest.mark.parametrize(
    "averages", [{"w": Window(2, every=1)}, {"e": EMA(0.5)}, {"m": RunningMean(), "w": Window(3, every=2)}], ids=str
)
def test_dcp_without_prepare_to_load_says_so(averages: Any, tmp_path: Path) -> None:
    folder = save(Run(mode="evaluate", averages=averages).go(1, 4), tmp_path / "c")
    with pytest.raises(LawaError, match=r"before dcp\.load, a fresh averager needs prepare_to_load\(checkpoint\)"):
        load(Run(mode="evaluate", averages=averages), folder, prepare=False)


def test_preparing_again_for_another_checkpoint(tmp_path: Path) -> None:
    run = Run(mode="evaluate", averages=AVERAGES).go(1, 3)
    first = save(run, tmp_path / "first")
    second = save(run.go(4, 8), tmp_path / "second")
    fresh = Run(mode="evaluate", averages=AVERAGES)
    fresh.averager.prepare_to_load(first)
    load(fresh, second)
    assert fresh.averager.steps("w") == [7, 8]
    assert toys.same_weights(toys.seen_by(fresh.averager, "e"), toys.seen_by(run.averager, "e"))


@pytest.mark.parametrize("size", [1, 5])
def test_dcp_into_a_window_of_another_size(size: int, tmp_path: Path) -> None:
    folder = save(Run(mode="evaluate", every=1, window=3).go(1, 4), tmp_path / "c")
    other = Run(mode="evaluate", every=1, window=size)
    load(other, folder)
    assert other.averager.steps() == [2, 3, 4][-size:]


def test_under_another_key_and_where_there_is_no_averager(tmp_path: Path) -> None:
    run = Run(mode="evaluate", every=1, window=2).go(1, 3)
    dcp.save({"mine": run.averager, "model": run.model.state_dict()}, checkpoint_id=tmp_path / "c", no_dist=True)
    fresh = Run(mode="evaluate", every=1, window=2).averager
    with pytest.raises(LawaError, match=r"holds no averager under 'averager'; it has \['mine', 'model'\]"):
        fresh.prepare_to_load(tmp_path / "c")
    fresh.prepare_to_load(dcp.FileSystemReader(tmp_path / "c"), key="mine")
    dcp.load({"mine": fresh}, checkpoint_id=tmp_path / "c", no_dist=True)
    assert fresh.steps() == [2, 3]


def test_the_averager_is_a_stateful() -> None:
    from torch.distributed.checkpoint.stateful import Stateful

    assert isinstance(Run(mode="evaluate", every=1).averager, Stateful)


def test_a_state_of_another_dtype_is_refused_and_nothing_changes() -> None:
    """It would be rounded silently: the loop's average would no longer be that of its snapshots."""
    wide, narrow = nn.Linear(3, 2), nn.Linear(3, 2).bfloat16()
    saved, other = (WeightAverager(model, mode="evaluate", every=1, window=2) for model in (wide, narrow))
    saved.update()
    other.update()
    other.update()
    with pytest.raises(LawaError, match=r"'weight' is torch.float32 where the model has torch.bfloat16"):
        other.load_state_dict(saved.state_dict())
    assert (other.step, other.steps()) == (2, [1, 2])


def test_going_on_under_another_rule_warns() -> None:
    model = nn.Linear(3, 2)
    averages = {"w": Window(2, every=1), "e": EMA(0.9)}
    saved = WeightAverager(model, mode="evaluate", averages=averages)
    saved.update()
    other = WeightAverager(model, mode="evaluate", averages={"w": Window(5, every=1), "e": EMA(0.5)})
    with pytest.warns(UserWarning, match="'e' was saved as 'EMA beta 0.9, every 1' and goes on as 'EMA beta 0.5"):
        other.load_state_dict(saved.state_dict())


# ---- states whose tensors are kept elsewhere


class Durable(DeviceStore):
    """Snapshots that outlive their process: `kept` is the disk, {update: flat tensors}."""

    durable = True

    def __init__(self, layout: Layout, kept: dict[int, list[torch.Tensor]]) -> None:
        super().__init__(layout)
        self.kept = kept

    def capture(self, step: int) -> Any:
        snapshot = super().capture(step)
        self.kept[step] = [flat.clone() for flat in snapshot]
        return snapshot

    def empty(self, step: int) -> Any:
        snapshot = super().empty(step)
        for flat, kept in zip(snapshot, self.kept.get(step, ()), strict=step in self.kept):
            flat.copy_(kept)
        return snapshot


DURABLE = {name: SETTINGS[name] for name in ("evaluate", "slide", "clear", "strength", "many")}


@pytest.mark.parametrize("settings", DURABLE.values(), ids=DURABLE)
def test_the_state_of_a_durable_store_names_its_snapshots_and_carries_none(settings: Any) -> None:
    """So a saved state is small, and a fresh process asks the store for what the windows held."""
    kept: dict[int, list[torch.Tensor]] = {}
    durable = {**settings, "placement": lambda layout: Durable(layout, kept)}
    plain, stopped = Run(**settings), Run(**durable)
    for stop in range(1, LAST):
        plain.go(stop, stop)
        stopped.go(stop, stop)
        saved = through_torch_save(stopped.state())
        assert saved["averager"]["snapshots"] == {}
        assert saved["averager"]["meta"] == plain.averager.state_dict()["meta"]
        assert saved["averager"]["running"].keys() == plain.averager.state_dict()["running"].keys()
        resumed = Run(**durable).load(saved)
        assert same(resumed.go(stop + 1, LAST).end(), Run(**settings).go(1, LAST).end()), f"stopped after {stop}"


def test_a_durable_store_is_asked_only_for_what_is_held_and_before_anything_changes() -> None:
    kept: dict[int, list[torch.Tensor]] = {}
    asked: list[int] = []

    class Lacking(Durable):
        def empty(self, step: int) -> Any:
            asked.append(step)
            if step not in self.kept:
                raise LawaError(f"no snapshot of update {step}")
            return super().empty(step)

    state = Run(**SETTINGS["evaluate"], placement=lambda layout: Durable(layout, kept)).go(1, 9).state()
    fresh = Run(**SETTINGS["evaluate"], placement=lambda layout: Lacking(layout, kept))
    del kept[2]
    fresh.averager.load_state_dict(state["averager"])
    assert asked == fresh.averager.steps() == [4, 6, 8]
    smaller = Run(**{**SETTINGS["evaluate"], "window": 2}, placement=lambda layout: Lacking(layout, kept))
    del kept[4]
    smaller.averager.load_state_dict(state["averager"])
    assert smaller.averager.steps() == [6, 8]
    with pytest.raises(LawaError, match="no snapshot of update 4"):
        fresh.averager.load_state_dict(state["averager"])
    assert fresh.averager.steps() == [4, 6, 8]


@pytest.mark.parametrize("settings", [SETTINGS["slide"], SETTINGS["many"]], ids=["slide", "many"])
@pytest.mark.parametrize("before", [0, 5])
def test_room_is_made_for_a_state_that_is_loaded_piece_by_piece(settings: Any, before: int) -> None:
    """What `meta` tells is enough; the pieces are then loaded into the averager's own memory, and stay there."""
    saved = Run(**settings).go(1, 7)
    state = through_torch_save(saved.state())
    fresh = Run(**settings).go(1, before)
    fresh.averager.make_room(state["averager"]["meta"])
    room = fresh.averager.state_dict()
    for kind in ("snapshots", "running"):
        assert room[kind].keys() == state["averager"][kind].keys()
        for piece, tensors in room[kind].items():
            for name, tensor in tensors.items():
                tensor.copy_(state["averager"][kind][piece][name])
    filled = {**state, "averager": {**room, "meta": state["averager"]["meta"]}}
    memory = {tensor.data_ptr() for tensors in room["snapshots"].values() for tensor in tensors.values()}
    fresh.load(filled)
    now = fresh.averager.state_dict()["snapshots"]
    assert {tensor.data_ptr() for tensors in now.values() for tensor in tensors.values()} == memory
    assert same(fresh.go(8, LAST).end(), saved.go(8, LAST).end())


def test_room_for_an_empty_state_lets_go_of_everything() -> None:
    fresh = Run(**SETTINGS["many"])
    used = Run(**SETTINGS["many"]).go(1, 6)
    used.averager.make_room(fresh.averager.state_dict()["meta"])
    state = used.averager.state_dict()
    assert state["snapshots"] == state["running"] == {}


@pytest.mark.parametrize("meta", ["", "{", "[]", "{}", '{"windows": 3}'])
def test_a_damaged_meta_is_one_sentence(meta: str) -> None:
    averager = toys.evaluate(toys.linear(), every=1)
    with pytest.raises(LawaError, match=r"saved state cannot be read .* it is damaged"):
        averager.load_state_dict({"meta": meta, "snapshots": {}, "running": {}})


def test_a_checkpoint_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    averager = toys.evaluate(toys.linear(), every=1)
    with pytest.raises(LawaError, match="nowhere is no DCP checkpoint"):
        averager.prepare_to_load(tmp_path / "nowhere")


def test_other_running_averages_in_a_checkpoint_are_refused_before_anything_is_let_go(tmp_path: Path) -> None:
    saved = WeightAverager(toys.linear(), mode="evaluate", averages={"e": EMA(0.5)})
    saved.update()
    dcp.save({"averager": saved}, checkpoint_id=tmp_path / "saved")
    other = toys.evaluate(toys.linear(), every=1, window=2)
    other.update()
    with pytest.raises(LawaError, match="make it with the same averages"):
        other.prepare_to_load(tmp_path / "saved")
    assert other.steps() == [1]
