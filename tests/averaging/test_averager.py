"""The whole method in a loop, against twins over copies of the weights that the test takes itself."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import twins
from averaging import toys
from averaging.toys import evaluate, replace
from lawa import EMA, RunningMean, WeightAverager, Window
from lawa.averaging.coefficients import coefficients
from lawa.averaging.layout import Group
from lawa.errors import LawaError

LAST = 14
Weights = dict[str, np.ndarray]


# ---- evaluate: the paper


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("spec", ["uniform", "linear", "one_minus_sqrt", {"ema": 0.8}, {"decay": "cosine"}], ids=str)
@pytest.mark.parametrize(("every", "window", "start", "stop"), [(1, 1, 1, None), (2, 3, 3, None), (3, 4, 1, 12)])
def test_every_average_of_a_run_is_the_twins(
    dtype: torch.dtype, spec: Any, every: int, window: int, start: int, stop: int | None
) -> None:
    model = toys.Tied(dtype=dtype)
    averager = evaluate(model, every=every, window=window, start=start, stop=stop, coefficients=spec)
    copies: dict[int, Weights] = {}
    for t in range(1, LAST + 1):
        toys.wander(model, t)
        copies[t] = toys.weights(model)
        assert averager.update() is False
        steps = twins.window_after(every, start, stop, window, t)
        assert averager.steps() == steps
        assert averager.count() == len(steps)
        assert averager.ready() == (len(steps) == window)
        if steps:
            c = None if spec == "uniform" else coefficients(spec, len(steps))
            want = toys.mean_of([copies[step] for step in steps], model, c)
            assert toys.same_weights(toys.seen_by(averager), want)
        assert toys.same_weights(toys.weights(model), copies[t])
    assert averager.steps() == twins.window_after(every, start, stop, window, LAST) != []


def test_training_never_sees_an_evaluated_average() -> None:
    runs = []
    for averaged in (False, True):
        model = toys.Tied()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        averager = evaluate(model, averages={"w": Window(2, every=1), "e": EMA(0.9), "m": RunningMean()})
        for t in range(1, 8):
            toys.train_step(model, optimizer, t)
            if averaged:
                averager.update()
                for name in averager.averages:
                    with averager.averaged(name):
                        model(torch.arange(5))
        runs.append(toys.weights(model))
    assert toys.same_weights(*runs)


def test_accumulating_in_fp64() -> None:
    model = toys.linear(dtype=torch.float32)
    wide, narrow = (evaluate(model, every=1, window=20, accumulate=dtype) for dtype in (torch.float64, torch.float32))
    copies = []
    for t in range(1, 21):
        toys.wander(model, t)
        copies.append(toys.weights(model))
        wide.update()
        narrow.update()
    assert toys.same_weights(toys.seen_by(wide), toys.mean_of(copies, model, wide=np.float64))
    assert toys.same_weights(toys.seen_by(narrow), toys.mean_of(copies, model))


def test_a_window_that_is_not_full_gives_the_average_of_what_it_holds() -> None:
    model = toys.linear((2.0, 2.0))
    averager = evaluate(model, every=1, window=5, coefficients="linear", min_window=2)
    averager.update()
    assert not averager.ready()
    assert toys.seen_by(averager)["weight"].tolist() == [[2.0, 2.0]]
    toys.fill(model, 5.0)
    averager.update()
    assert averager.ready()
    assert toys.seen_by(averager)["weight"].tolist() == [[4.0, 4.0]]


def test_coefficients_given_one_by_one_have_no_average_of_less() -> None:
    averager = evaluate(toys.linear(), every=1, window=2, coefficients=[0.25, 0.75])
    averager.update()
    with pytest.raises(LawaError, match="2 coefficients were given for 1 snapshots"), averager.averaged():
        pass
    averager.update()
    with averager.averaged():
        pass


# ---- replace: the description


def replayed(model: nn.Module, *, window: int, every: int, **settings: Any) -> Iterator[tuple[int, bool, Weights]]:
    """The twin: (t, whether it replaced, weights) after every update, from numpy's means over its own copies."""
    start, stop = settings.get("start", 1), settings.get("stop")
    schedule = dict(
        twins.replacements(
            twins.captures(every, start, stop, LAST), LAST, window=window,
            min_window=settings.get("min_window", window), replace_every=settings.get("replace_every", every),
            replace_until=settings.get("replace_until"), clear=settings.get("after_replace") == "clear",
        )
    )  # fmt: skip
    spec, alpha = settings.get("coefficients", "uniform"), settings.get("strength", 1)
    copies: dict[int, Weights] = {}
    for t in range(1, LAST + 1):
        toys.wander(model, t)
        copies[t] = toys.weights(model)
        if t in schedule:
            steps = schedule[t]
            c = None if spec == "uniform" else coefficients(spec, len(steps))
            mean = toys.mean_of([copies[step] for step in steps], model, c)
            for name, parameter in model.named_parameters():
                theta = copies[t][name]
                new = mean[name] if alpha == 1 else theta + np.float32(alpha) * (mean[name] - theta)
                parameter.data.copy_(torch.from_numpy(new))
        yield t, t in schedule, toys.weights(model)


REPLACEMENTS: list[dict[str, Any]] = [
    {"every": 1, "window": 1},
    {"every": 1, "window": 3},
    {"every": 2, "window": 2},
    {"every": 1, "window": 3, "after_replace": "clear"},
    {"every": 2, "window": 3, "after_replace": "clear"},
    {"every": 1, "window": 4, "min_window": 2},
    {"every": 1, "window": 2, "replace_every": 3},
    {"every": 2, "window": 2, "replace_every": 4, "after_replace": "clear"},
    {"every": 1, "window": 2, "replace_until": 5},
    {"every": 2, "window": 2, "start": 5, "stop": 10},
    {"every": 1, "window": 3, "coefficients": "one_minus_sqrt"},
    {"every": 1, "window": 3, "coefficients": [0.5, -0.25, 0.75]},
    {"every": 1, "window": 2, "strength": 0.3},
    {"every": 2, "window": 2, "strength": 0.5, "after_replace": "clear"},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("settings", REPLACEMENTS, ids=str)
def test_replaced_weights_are_bit_for_bit_the_twins_at_every_update(dtype: torch.dtype, settings: Any) -> None:
    model, twin = toys.Tied(dtype=dtype), toys.Tied(dtype=dtype)
    averager = replace(model, **settings)
    replaced_at = []
    for t, replaces, want in replayed(twin, **settings):
        toys.wander(model, t)
        assert averager.update() == replaces, t
        assert toys.same_weights(toys.weights(model), want), t
        replaced_at += [t] if replaces else []
    assert replaced_at
    assert averager.last_replacement == replaced_at[-1]
    assert averager.replacement is not None
    assert list(averager.replacement.cadence.updates(LAST)) == replaced_at


def test_snapshots_of_a_sliding_window_are_what_training_reached_and_not_the_average() -> None:
    """The literal description: after a replacement the window keeps its snapshots, θ_t as it was before."""
    model = toys.linear((0.0,))
    averager = replace(model, every=1, window=2)
    seen = []
    for _ in range(4):
        toys.fill(model, model.weight.item() + 1)
        averager.update()
        seen.append(model.weight.item())
    # captured 1, 2 → 1.5; then 2.5 → (2 + 2.5)/2 = 2.25; then 3.25 → (2.5 + 3.25)/2 = 2.875
    assert seen == [1.0, 1.5, 2.25, 2.875]


def test_clear_starts_anew() -> None:
    model = toys.linear((0.0,))
    averager = replace(model, every=1, window=2, after_replace="clear")
    seen, held = [], []
    for _ in range(4):
        toys.fill(model, model.weight.item() + 1)
        averager.update()
        seen.append(model.weight.item())
        held.append(averager.steps())
    # captured 1, 2 → 1.5; then 2.5 and 3.5 → 3.0
    assert seen == [1.0, 1.5, 2.5, 3.0]
    assert held == [[1], [], [3], []]
    with pytest.raises(LawaError, match="'lawa' holds nothing: its next capture is at update 5"), averager.averaged():
        pass


def test_a_window_of_one_replaces_the_weights_by_themselves() -> None:
    model = toys.Tied()
    averager = replace(model, every=1, window=1)
    for t in range(1, 4):
        toys.wander(model, t)
        before = toys.weights(model)
        assert averager.update()
        assert toys.same_weights(toys.weights(model), before)


def test_after_the_last_capture_replacements_end_and_the_window_can_still_be_looked_at() -> None:
    model = toys.linear((0.0,))
    averager = replace(model, every=1, window=2, stop=3)
    replaced = [averager.update() for _ in range(6)]
    assert replaced == [False, True, True, False, False, False]
    assert averager.steps() == [2, 3]
    assert averager.step == 6


@pytest.mark.parametrize(("average", "twin"), [(EMA(0.75), twins.ema), (RunningMean(), None)], ids=["ema", "mean"])
@pytest.mark.parametrize("after_replace", ["slide", "clear"])
def test_a_running_average_can_replace(average: Any, twin: Any, after_replace: str) -> None:
    model = toys.linear((0.0, 1.0))
    averager = replace(
        model, averages={"a": average, "w": Window(2, every=1)}, replace_with="a", replace_every=3,
        after_replace=after_replace,
    )  # fmt: skip
    read: list[np.ndarray] = []
    for t in range(1, 9):
        toys.wander(model, t)
        read.append(twins.array(model.weight))
        replaces = t in (1, 4, 7)
        assert averager.update() == replaces
        if replaces:
            assert twins.same_bits(model.weight, twin(read, 0.75) if twin else twins.uniform(read))
            read = [] if after_replace == "clear" else read
        assert averager.count("a") == len(read)
    assert averager.steps("a") == []


def test_the_two_halves_are_an_update() -> None:
    model = toys.linear((1.0,))
    averager = replace(model, every=2, window=1)
    assert averager.capture() is False
    assert averager.replace_if_due() is False
    assert averager.capture() is True
    assert averager.replacement_pending
    toys.fill(model, 7.0)  # nothing in between is lost on the average
    assert averager.replace_if_due() is True
    assert not averager.replacement_pending
    assert model.weight.item() == 1.0
    assert averager.replace_if_due() is False


def test_evaluating_and_saving_between_the_halves_see_what_training_reached() -> None:
    model = toys.linear((1.0,))
    averager = replace(model, every=1, window=2)
    averager.update()
    toys.fill(model, 3.0)
    averager.capture()
    assert model.weight.item() == 3.0
    with averager.averaged():
        assert model.weight.item() == 2.0
    assert model.weight.item() == 3.0
    assert averager.replacement_pending
    averager.replace_if_due()
    assert model.weight.item() == 2.0


# ---- attached to an optimizer


def test_attached_it_counts_the_optimizers_steps() -> None:
    model = toys.Tied()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    averager = replace(model, optimizer, every=2, window=2)
    handle = averager.attach()
    for t in range(1, 5):
        toys.train_step(model, optimizer, t)
    assert averager.step == 4
    assert averager.steps() == [2, 4]
    assert averager.last_replacement == 4
    with pytest.raises(LawaError, match=r"is attached, and counts the steps by itself; do not call update"):
        averager.update()
    with pytest.raises(LawaError, match="attached already"):
        averager.attach()
    handle.remove()
    toys.train_step(model, optimizer, 5)
    assert averager.step == 4
    averager.update()
    assert averager.step == 5


def test_an_old_handle_removed_again_leaves_the_new_one_alone() -> None:
    model = toys.Tied()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    averager = evaluate(model, every=1, window=1)
    first = averager.attach(optimizer)
    first.remove()
    with averager.attach(optimizer):
        first.remove()
        with pytest.raises(LawaError, match="the averager is attached, and counts"):
            averager.update()
        toys.train_step(model, optimizer, 1)
    assert averager.step == 1
    averager.update()


def test_attach_needs_an_optimizer() -> None:
    with pytest.raises(LawaError, match=r"attach.* needs the optimizer"):
        evaluate(toys.linear(), every=1).attach()


def test_an_optimizer_step_inside_averaged_is_refused_and_the_weights_come_back() -> None:
    model = toys.Tied()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    averager = WeightAverager(model, optimizer, mode="evaluate", every=1, window=1)
    averager.attach()
    toys.train_step(model, optimizer, 1)
    before = toys.weights(model)
    with pytest.raises(LawaError, match="an update inside averaged"), averager.averaged():
        toys.train_step(model, optimizer, 2)
    assert toys.same_weights(toys.weights(model), before)
    assert averager.step == 1


# ---- order of steps


def test_a_trainers_numbers_are_taken_and_only_grow() -> None:
    averager = evaluate(toys.linear(), every=10, window=2)
    averager.update(step=10)
    averager.update(step=17)
    averager.update(step=20)
    averager.update()
    assert averager.step == 21
    assert averager.steps() == [10, 20]
    for wrong in (21, 20, 1):
        with pytest.raises(LawaError, match=f"update {wrong} comes after update 21; steps only grow"):
            averager.update(step=wrong)
    assert averager.step == 21


@pytest.mark.parametrize("bad", [0, -1, 1.0, "1", True])
def test_a_step_is_a_whole_number_from_one_on(bad: Any) -> None:
    averager = evaluate(toys.linear(), every=1)
    with pytest.raises(LawaError, match=r"^step=.*at least 1"):
        averager.update(step=bad)
    assert averager.step == 0


def test_a_replacement_that_was_not_carried_out_is_an_error_at_the_next_update() -> None:
    model = toys.linear()
    averager = replace(model, every=1, window=1)
    averager.capture()
    for call in (averager.capture, averager.update):
        with pytest.raises(LawaError, match="due at update 1 was never carried out; call replace_if_due"):
            call()
    assert averager.step == 1
    assert averager.replace_if_due()
    averager.update()


def test_a_step_that_a_loss_scaler_skipped_counts_and_is_marked() -> None:
    averager = evaluate(toys.linear(), every=1, window=3)
    averager.update()
    averager.update(skipped=True)
    averager.update()
    assert averager.steps() == [1, 2, 3]
    assert json.loads(averager.state_dict()["meta"])["skipped"] == [2]


# ---- averaged()


class Stop(BaseException):
    """Like KeyboardInterrupt: not an Exception."""


@pytest.mark.parametrize("error", [ValueError, Stop])
def test_the_models_own_weights_always_come_back(error: type[BaseException]) -> None:
    model = toys.Tied()
    averager = evaluate(model, every=1, window=2)
    for t in (1, 2):
        toys.wander(model, t)
        averager.update()
    before = toys.weights(model)

    def evaluation() -> None:
        assert not toys.same_weights(toys.weights(model), before)
        toys.fill(model, 0.0)
        raise error

    with pytest.raises(error), averager.averaged():
        evaluation()
    assert toys.same_weights(toys.weights(model), before)
    with averager.averaged():  # and it works again
        pass
    averager.update()


def test_they_come_back_when_the_swap_itself_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, dtype=torch.bfloat16))  # two groups: one is written
    averager = evaluate(model, every=1, window=1)
    averager.update()
    toys.wander(model, 1)
    before = toys.weights(model)
    current, calls = Group.current, []

    def failing(group: Group) -> list[torch.Tensor]:
        calls.append(group)
        if len(calls) == 4:  # backup of both groups, the first group's average, then:
            raise RuntimeError("out of memory")
        return current(group)

    monkeypatch.setattr(Group, "current", failing)
    with pytest.raises(RuntimeError, match="out of memory"), averager.averaged():
        raise AssertionError("never reached")
    assert toys.same_weights(toys.weights(model), before)
    averager.update()


def test_averages_do_not_nest() -> None:
    model = toys.linear((1.0,))
    averager = evaluate(model, averages={"a": Window(1, every=1), "b": EMA(0.5)})
    averager.update()
    toys.fill(model, 2.0)
    with averager.averaged("a"):
        with pytest.raises(LawaError, match=r"averaged\('b'\) inside averaged\('a'\)"), averager.averaged("b"):
            pass
        assert model.weight.item() == 1.0
    assert model.weight.item() == 2.0


def test_no_update_and_no_replacement_inside_averaged() -> None:
    model = toys.linear((1.0,))
    averager = replace(model, every=1, window=1)
    averager.capture()
    toys.fill(model, 2.0)
    with averager.averaged():
        with pytest.raises(LawaError, match=r"an update inside averaged\('lawa'\)"):
            averager.update()
        with pytest.raises(LawaError, match=r"a replacement inside averaged\('lawa'\)"):
            averager.replace_if_due()
    assert averager.replacement_pending
    assert averager.step == 1


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_averaged_in_any_gradient_mode_and_training_goes_on(mode: Any) -> None:
    model = toys.Tied()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    averager = evaluate(model, averages={"w": Window(2, every=1), "e": EMA(0.5), "m": RunningMean()})
    for t in range(1, 4):
        toys.train_step(model, optimizer, t)
        averager.update()
        before = toys.weights(model)
        for name in averager.averages:
            with mode(), averager.averaged(name):
                model(torch.arange(4))
        assert toys.same_weights(toys.weights(model), before)
        assert all(parameter.requires_grad for name, parameter in model.named_parameters() if name != "scale")


def test_a_swap_between_forward_and_backward_is_an_error_of_torchs_and_not_a_wrong_gradient() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    averager = evaluate(model, every=1, window=1)
    averager.update()
    loss = model(torch.ones(1, 2)).sum()
    with averager.averaged():
        pass
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_looking_at_what_is_not_there() -> None:
    averager = evaluate(toys.linear(), averages={"w": Window(2, every=10, start=15), "m": RunningMean(start=4, stop=5)})
    for name, first in (("w", 20), ("m", 4)):
        for look in (lambda name: averager.averaged(name).__enter__(), averager.is_finite):
            with pytest.raises(LawaError, match=f"'{name}' holds nothing: its next capture is at update {first}"):
                look(name)
    averager.update(step=6)
    with pytest.raises(LawaError, match="'m' holds nothing: it captures no more"):
        averager.is_finite("m")
    with pytest.raises(LawaError, match="average 'x' is unknown; name one of w, m"):
        averager.count("x")
    with pytest.raises(LawaError, match="there are several averages; name one of w, m"):
        averager.count()


def test_a_capture_of_a_skipped_update_is_marked_and_the_mark_survives_a_resume() -> None:
    model = toys.linear()
    averager, fresh = (evaluate(model, every=1, window=3) for _ in range(2))
    for t in range(1, 6):
        averager.update(skipped=t in (2, 4))
    assert (averager.steps(), averager.skipped()) == ([3, 4, 5], [4])
    fresh.load_state_dict(averager.state_dict())
    assert fresh.skipped() == [4]


def test_a_restart_begins_anew_at_any_update() -> None:
    model = toys.linear((1.0,))
    averager = WeightAverager(
        model, mode="replace", averages={"w": Window(2, every=1), "e": EMA(0.5)}, replace_with="w"
    )
    averager.update()
    toys.fill(model, float("nan"))
    averager.capture()
    averager.restart(7)
    assert (averager.step, averager.count("w"), averager.count("e"), averager.replacement_pending) == (7, 0, 0, False)
    toys.fill(model, 3.0)
    averager.update(step=8)
    with averager.averaged("e"):
        assert model.weight.item() == 3.0


def test_it_cannot_be_copied_or_pickled() -> None:
    """A copy's functions would write into the original's model."""
    averager = toys.evaluate(toys.linear(), every=1)
    for way in (copy.deepcopy, copy.copy, pickle.dumps):
        with pytest.raises(LawaError, match="is bound to its model and cannot be copied or pickled"):
            way(averager)


@pytest.mark.parametrize("add", ["parameter", "module"])
def test_what_is_added_later_is_said(add: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    averager = toys.evaluate(model, every=1)
    averager.update()
    if add == "module":
        model.append(nn.Linear(2, 2))
    else:
        model[0].extra = nn.Parameter(torch.zeros(1))
    with pytest.raises(LawaError, match="has other parameters or modules than when the averager was made"):
        averager.update()


def test_wrong_arguments_get_a_sentence() -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(LawaError, match=r"the model is a SGD; the first argument is a torch\.nn\.Module"):
        WeightAverager(optimizer, model, mode="evaluate")  # type: ignore[arg-type]
    with pytest.raises(LawaError, match="the optimizer is a Parameter; it must be a torch optimizer, or a list of"):
        WeightAverager(model, model.parameters(), mode="evaluate")  # type: ignore[arg-type]
