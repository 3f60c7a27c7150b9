"""The whole method in a loop, against twins over copies of the weights that the test takes itself."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lawa
import twins
from averaging import toys
from lawa import EMA, RunningMean, WeightAverager, Window
from lawa.averaging.coefficients import coefficients
from lawa.averaging.mean import block_size
from lawa.averaging.parameters import Group
from lawa.averaging.window import snapshots_needed
from lawa.errors import LawaError, NonFiniteAverage

LAST = 14
Weights = dict[str, np.ndarray]


def evaluate(model: nn.Module, **settings: Any) -> WeightAverager:
    return WeightAverager(model, mode="evaluate", **settings)


def replace(model: nn.Module, optimizer: Any = None, **settings: Any) -> WeightAverager:
    return WeightAverager(model, optimizer, mode="replace", **settings)


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
    with pytest.raises(LawaError, match=r"attached to the optimizer.*do not call update"):
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
        with pytest.raises(LawaError, match="attached to the optimizer"):
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


# ---- Adam's moments


def adam_run(
    moments: str, *, updates: int = 6, lr: float = 0.05
) -> tuple[nn.Module, Any, list[Weights], list[Weights]]:
    """A replacement at update 3 of `updates`; the weights and states that the optimizer had reached after each."""
    model = toys.Tied()
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    averager = replace(model, optimizer, every=1, window=3, replace_until=3, moments=moments)
    thetas, states = [], []
    for t in range(1, updates + 1):
        toys.train_step(model, optimizer, t)
        thetas.append(toys.weights(model))
        states.append(moments_of(model, optimizer))
        averager.update()
    return model, optimizer, thetas, states


def moments_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> Weights:
    return {
        f"{moment}.{name}": twins.array(optimizer.state[parameter][moment])
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
        for moment in ("exp_avg", "exp_avg_sq", "step")
    }


def test_keep_leaves_the_moments_and_the_step_count() -> None:
    model, optimizer, _, states = adam_run("keep", updates=3)
    assert toys.same_weights(moments_of(model, optimizer), states[-1])
    assert optimizer.state[model.inner.weight]["step"].item() == 3


def test_average_gives_the_moments_the_same_mean_as_the_weights() -> None:
    model, optimizer, thetas, states = adam_run("average", updates=3)
    assert toys.same_weights(toys.weights(model), toys.mean_of(thetas, model))
    now = moments_of(model, optimizer)
    for name, value in now.items():
        if name.startswith("step."):
            assert value == 3
        else:
            assert twins.same_bits(value, twins.uniform([state[name] for state in states])), name


def test_average_is_not_evaluated_with_the_weights() -> None:
    """averaged() swaps weights only: the moments are a replacement's."""
    model = toys.Tied()
    optimizer = torch.optim.Adam(model.parameters())
    averager = replace(model, optimizer, every=1, window=3, moments="average")
    toys.train_step(model, optimizer, 1)
    averager.update()
    toys.train_step(model, optimizer, 2)
    averager.update()
    before = moments_of(model, optimizer)
    with averager.averaged():
        assert toys.same_weights(moments_of(model, optimizer), before)
    snapshot = averager.state_dict()["snapshots"]["00000001"]
    assert {name.split(".")[0] for name in snapshot} == {"embed", "inner", "exp_avg", "exp_avg_sq"}


def test_reset_goes_on_as_a_new_optimizer_would_with_the_schedule_untouched() -> None:
    """After the replacement, the same steps as a fresh Adam's from the same weights; twice by hand, too."""
    model, optimizer, _, _ = adam_run("reset", updates=3)
    assert all(np.all(value == 0) for value in moments_of(model, optimizer).values())
    fresh = toys.Tied()
    fresh.load_state_dict(model.state_dict())
    newly = torch.optim.Adam(fresh.parameters(), lr=0.05)
    theta = twins.array(model.inner.weight).astype(np.float64)
    m = v = np.zeros_like(theta)
    for t in (4, 5, 6):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.grad = None
        logits_loss_gradient = gradient_of(model, t)
        theta, m, v = twins.adam_step(theta, logits_loss_gradient, m, v, t - 3, lr=0.05)
        toys.train_step(model, optimizer, t)
        toys.train_step(fresh, newly, t)
        assert toys.same_weights(toys.weights(model), toys.weights(fresh))
        assert twins.array(model.inner.weight) == pytest.approx(theta, abs=1e-5)
    assert optimizer.param_groups[0]["lr"] == 0.05


def gradient_of(model: nn.Module, t: int) -> np.ndarray:
    twin = toys.Tied()
    twin.load_state_dict(model.state_dict())
    stolen: list[np.ndarray] = []
    sgd = torch.optim.SGD(twin.parameters(), lr=0.0)
    sgd.register_step_pre_hook(lambda *_: stolen.append(twins.array(twin.inner.weight.grad).astype(np.float64)))
    toys.train_step(twin, sgd, t)
    return stolen[0]


def test_the_policies_part_ways_after_the_replacement() -> None:
    ends = [toys.weights(adam_run(moments)[0]) for moments in ("keep", "reset", "average")]
    for left, right in ((0, 1), (0, 2), (1, 2)):
        assert not toys.same_weights(ends[left], ends[right])


def test_moments_that_do_not_exist_yet_are_captured_as_zeros() -> None:
    """A parameter without a gradient so far has no state; the average's moment is written once it has one."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    optimizer = torch.optim.Adam(model.parameters())
    averager = replace(model, optimizer, every=1, window=2, moments="average")
    for unused in (True, False):
        layers = model[:1] if unused else model
        layers(torch.ones(1, 1)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        late = optimizer.state[model[1].weight].get("exp_avg")
        late = None if late is None else late.item()
        averager.update()
    assert late is not None
    assert optimizer.state[model[1].weight]["exp_avg"].item() == np.float32(late) * np.float32(0.5)


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda parameters: torch.optim.SGD(parameters, lr=0.1), "SGD"),
        (lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9), "SGD"),
        (lambda parameters: torch.optim.Adamax(parameters), "Adamax"),
        (lambda parameters: torch.optim.RMSprop(parameters), "RMSprop"),
    ],
)
def test_averaging_moments_that_an_optimizer_does_not_keep_is_refused(build: Any, name: str) -> None:
    """Not averaged as zeros in silence; at the latest at the first capture."""
    model = toys.Tied()
    optimizer = build(model.parameters())

    def first_update() -> None:
        averager = replace(model, optimizer, every=1, window=2, moments="average")
        toys.train_step(model, optimizer, 1)
        averager.update()

    with pytest.raises(LawaError, match=f"needs Adam's exp_avg and exp_avg_sq, which {name} does not keep"):
        first_update()


def test_resetting_an_unknown_state_is_refused_before_anything_has_changed() -> None:
    model = toys.Tied()
    optimizer = torch.optim.NAdam(model.parameters())
    averager = replace(model, optimizer, every=1, window=2, moments="reset")
    toys.train_step(model, optimizer, 1)
    averager.update()
    toys.train_step(model, optimizer, 2)
    before = toys.weights(model), moments_of(model, optimizer)
    with pytest.raises(
        LawaError, match=r"does not know NAdam's state \['mu_product'\] of 'embed.weight'; choose 'keep'"
    ):
        averager.update()
    assert toys.same_weights(toys.weights(model), before[0])
    assert toys.same_weights(moments_of(model, optimizer), before[1])
    assert averager.replacement_pending, "nothing was carried out"


def test_resetting_momentum_and_what_is_no_tensor() -> None:
    model = toys.Tied()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    averager = replace(model, optimizer, every=1, window=1, moments="reset")
    toys.train_step(model, optimizer, 1)
    optimizer.state[model.inner.weight]["step"] = 5
    averager.update()
    assert torch.equal(optimizer.state[model.inner.weight]["momentum_buffer"], torch.zeros(4, 4))
    assert optimizer.state[model.inner.weight]["step"] == 0


def test_strength_moves_the_moments_too() -> None:
    model = toys.linear((0.0,))
    optimizer = torch.optim.Adam(model.parameters())
    averager = replace(model, optimizer, every=1, window=2, moments="average", strength=0.5)
    seen = []
    for gradient in (1.0, 3.0):
        model.weight.grad = torch.full((1, 1), gradient)
        optimizer.step()
        seen.append(optimizer.state[model.weight]["exp_avg"].item())
        averager.update()
    old, new = np.float32(seen[0]), np.float32(seen[1])
    mean = (old + new) * np.float32(0.5)
    assert optimizer.state[model.weight]["exp_avg"].item() == new + np.float32(0.5) * (mean - new)


# ---- several averages


AVERAGES: dict[str, Any] = {
    "short": Window(2, every=2),
    "long": Window(3, every=4, coefficients="linear"),
    "late": Window(2, every=3, start=7),
    "early": Window(3, every=1, stop=5),
    "ema": EMA(0.5, every=2, start=3),
    "swa": RunningMean(every=2, start=6, stop=10),
}


def test_each_average_keeps_its_own_cadence() -> None:
    model = toys.Tied()
    averager = evaluate(model, averages=AVERAGES)
    copies: dict[int, Weights] = {}
    for t in range(1, LAST + 1):
        toys.wander(model, t)
        copies[t] = toys.weights(model)
        averager.update()
        for name, average in AVERAGES.items():
            read = twins.captures(average.every, average.start, average.stop, t)
            rows = [copies[step] for step in (read[-average.size :] if isinstance(average, Window) else read)]
            assert averager.count(name) == len(rows), (name, t)
            if not rows:
                continue
            if isinstance(average, EMA):
                want = {
                    key: value if key == "scale" else twins.ema([row[key] for row in rows], 0.5)
                    for key, value in rows[-1].items()
                }
            else:
                c = coefficients("linear", len(rows)) if name == "long" else None
                want = toys.mean_of(rows, model, c)
            assert toys.same_weights(toys.seen_by(averager, name), want), (name, t)
    assert averager.steps("early") == [3, 4, 5]
    assert averager.steps("long") == [4, 8, 12]
    assert averager.steps("ema") == []


def test_one_snapshot_serves_every_window_that_is_due() -> None:
    model = toys.linear(torch.zeros(5000))
    averager = evaluate(model, averages={"a": Window(2, every=1), "b": Window(3, every=1), "c": Window(2, every=2)})
    one = 5000 * 4
    memory = toys.Memory()
    memory.ignore(model.weight)
    with memory:
        fresh = []
        for t in range(1, 9):
            toys.fill(model, float(t))
            before = memory.alive
            averager.update()
            fresh.append(round((memory.alive - before) / one, 1))
    # 1 is kept by a, b; 2 by all; 3; at 4, b lets 1 go and its memory takes 4: {2, 3, 4}; at 5, c still holds {2, 4}
    assert fresh == [1, 1, 1, 0, 1, 0, 0, 0]
    assert averager.cost().snapshots == 4
    assert averager.steps("a") == [7, 8]
    assert averager.steps("c") == [6, 8]


@pytest.mark.parametrize("placement", ["device", "host"])
def test_in_the_steady_state_a_capture_allocates_nothing(placement: str) -> None:
    model = toys.Tied()
    averager = evaluate(model, averages={"a": Window(2, every=1), "b": Window(3, every=2)}, placement=placement)
    for _ in range(8):
        averager.update()
    memory = toys.Memory()
    memory.ignore(*model.parameters())
    with memory:
        for _ in range(8):
            averager.update()
    assert memory.ops > 0
    assert memory.new == 0


def test_running_averages_keep_no_more_memory_than_their_state() -> None:
    model = toys.Tied()
    averager = evaluate(model, averages={"e": EMA(0.5), "m": RunningMean()})
    averager.update()
    averager.update()
    memory = toys.Memory()
    memory.ignore(*model.parameters())
    with memory:
        for _ in range(8):
            averager.update()
    assert memory.ops > 0
    assert memory.alive == 0


def test_a_capture_is_one_copy_a_group_however_many_tensors_there_are() -> None:
    """torch's AveragedModel takes 27 times a memory copy: several operators a tensor. Here the number is fixed."""
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(100)))
    averager = evaluate(model, every=1, window=2)
    for _ in range(4):
        averager.update()
    kinds: list[str] = []

    class Writes(toys.Memory):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func._schema.is_mutable:
                kinds.append(str(func))
            return func(*args, **(kwargs or {}))

    with Writes():
        averager.update()
    assert kinds == ["aten._foreach_copy_.default"]


@st.composite
def windows(draw: st.DrawFn) -> Window:
    size, every, start = draw(st.integers(1, 5)), draw(st.integers(1, 6)), draw(st.integers(1, 15))
    more = draw(st.none() | st.integers(0, 6))
    return Window(size, every=every, start=start, stop=None if more is None else start + (size + more) * every)


@settings(deadline=None)
@given(st.lists(windows(), min_size=1, max_size=3))
def test_how_many_snapshots_are_held_at_most(given_windows: list[Window]) -> None:
    settings = [(window.size, window.every, window.start, window.stop) for window in given_windows]
    # Starts, stops and the common period of the spacings (60 at most) have all passed by then.
    assert snapshots_needed(given_windows) == twins.most_snapshots(settings, 150)


def test_windows_without_a_short_period_get_the_sum_of_their_sizes() -> None:
    assert snapshots_needed([Window(3, every=9973), Window(4, every=9967)], captures=100) == 7
    assert snapshots_needed([]) == 0


# ---- EMA, running mean


@pytest.mark.parametrize("every", [1, 2, 5])
@pytest.mark.parametrize(("spacing", "k"), [(10, 2), (10, 5), (1000, 10), (1, 4)])
def test_the_matched_ema_has_the_mean_age_of_the_window(every: int, spacing: int, k: int) -> None:
    window = Window(k, every=spacing, start=7, stop=20 * spacing)
    ema = EMA.matched(window, every=every)
    window_age = twins.mean_age([1 / k] * k, [spacing * (k - 1 - i) for i in range(k)])
    n = 200_000
    powers = ema.beta ** np.arange(n)
    ema_age = float(np.sum((1 - ema.beta) * powers * every * np.arange(n)))
    assert ema_age == pytest.approx(window_age, rel=1e-6)
    assert (ema.every, ema.start, ema.stop) == (every, 7, 20 * spacing)


def test_the_matched_ema_has_the_designs_beta() -> None:
    """β = 1 − 2/(N(k − 1) + 2) per update; N = 1000, k = 10."""
    assert EMA.matched(Window(10, every=1000)).beta == pytest.approx(1 - 2 / 9002)
    with pytest.raises(LawaError, match="a window of 1 has mean age 0"):
        EMA.matched(Window(1, every=5))


@pytest.mark.parametrize("beta", [0, 1, -0.1, 1.5, "0.9", True, float("nan"), None])
def test_beta_lies_between_zero_and_one(beta: Any) -> None:
    with pytest.raises(LawaError, match=r"EMA beta=.* must lie strictly between 0 and 1"):
        EMA(beta)


def test_an_ema_starts_from_its_first_reading_at_start() -> None:
    model = toys.linear((1.0,))
    averager = evaluate(model, averages={"e": EMA(0.9, start=3)})
    for value in (100.0, 200.0, 5.0):
        toys.fill(model, value)
        averager.update()
    assert toys.seen_by(averager)["weight"].item() == 5.0


def test_an_ema_of_a_bf16_model_moves_at_0_9999() -> None:
    """In torch, timm and diffusers, where it is kept in bf16, it stays at its first value."""
    model = toys.linear((1.0,), dtype=torch.bfloat16)
    averager = evaluate(model, averages={"e": EMA(0.9999)})
    averager.update()
    toys.fill(model, 1.1)
    for _ in range(2000):
        averager.update()
    state = averager.state_dict()["running"]["e"]["weight"]
    assert state.dtype == torch.float32
    start, target = 1.0, model.weight.item()
    assert state.item() == pytest.approx(target + 0.9999**2000 * (start - target), abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("k", [1, 2, 3, 7])
def test_a_running_mean_has_the_bits_of_a_window_over_the_same_snapshots(dtype: torch.dtype, k: int) -> None:
    model = toys.Tied(dtype=dtype)
    averager = evaluate(model, averages={"w": Window(k, every=2), "m": RunningMean(every=2, stop=2 * k)})
    for t in range(1, 2 * k + 1):
        toys.wander(model, t)
        averager.update()
    assert averager.steps("w") == list(range(2, 2 * k + 1, 2))
    assert toys.same_weights(toys.seen_by(averager, "w"), toys.seen_by(averager, "m"))


def test_fp64_weights_have_fp64_states() -> None:
    model = toys.linear((1.0, 2.0), dtype=torch.float64)
    averager = evaluate(model, averages={"e": EMA(0.3), "m": RunningMean()})
    rows = []
    for t in range(1, 6):
        toys.wander(model, t)
        rows.append(twins.array(model.weight))
        averager.update()
    assert twins.same_bits(toys.seen_by(averager, "e")["weight"], twins.ema(rows, 0.3, np.float64))
    assert twins.same_bits(toys.seen_by(averager, "m")["weight"], twins.uniform(rows, np.float64))


# ---- non-finite


def poisoned(values: list[float], **settings: Any) -> tuple[WeightAverager, list[float], list[bool]]:
    """Weights take `values` one after the other, unless a replacement changes them."""
    model = toys.linear((0.0, 0.0))
    averager = replace(model, every=1, **settings)
    seen, replaced = [], []
    for value in values:
        with torch.no_grad():
            model.weight[0, 1] = value
        replaced.append(averager.update())
        seen.append(model.weight[0, 1].item())
    return averager, seen, replaced


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_non_finite_average_is_skipped_and_logged_and_training_goes_on(
    bad: float, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="lawa"):
        _, seen, replaced = poisoned([1.0, 3.0, bad, 5.0, 7.0], window=2)
    assert replaced == [False, True, False, False, True]
    assert seen[:2] == [1.0, 2.0]
    assert seen[3:] == [5.0, 6.0]
    assert [record.getMessage() for record in caplog.records] == [
        f"update {t}: the average 'lawa' of 2 snapshots is not finite (first in 'weight'); replacement skipped"
        for t in (3, 4)
    ]


def test_strict_stops_with_the_weights_as_they_are() -> None:
    model = toys.linear((1.0, 2.0))
    averager = replace(model, every=1, window=2, strict=True)
    averager.update()
    with torch.no_grad():
        model.weight[0, 0] = float("inf")
    with pytest.raises(NonFiniteAverage, match=r"update 2: .* not finite .first in 'weight'.; the weights were left"):
        averager.update()
    assert model.weight.tolist() == [[float("inf"), 2.0]]
    assert not averager.replacement_pending


def test_a_skipped_replacement_does_not_clear_and_waits_its_turn() -> None:
    averager, seen, replaced = poisoned(
        [1.0, float("nan"), 3.0, 5.0, 7.0, 9.0], window=2, after_replace="clear", replace_every=2
    )
    # due at 2 (skipped), then at 4: {3, 4} → 4.0; cleared; full again at 6: {5, 6} → 8.0
    assert replaced == [False, False, False, True, False, True]
    assert (seen[3], seen[5]) == (4.0, 8.0)
    assert averager.steps() == []


def test_a_skipped_replacement_counts_as_the_last_one() -> None:
    averager, _, replaced = poisoned([float("nan"), 1.0, 2.0, 3.0, 4.0], window=1, replace_every=3)
    assert replaced == [False, False, False, True, False]
    assert averager.last_replacement == 4


def test_overflow_in_the_captured_dtype_is_seen_too() -> None:
    """fp16 weights that are all finite, with coefficients that leave its range."""
    model = toys.linear((60000.0,), dtype=torch.float16)
    averager = replace(model, every=1, window=2, coefficients=[-0.5, 1.5])
    averager.update()
    toys.fill(model, -60000.0)
    assert not averager.update()
    assert model.weight.item() == -59999 - 1


def test_is_finite_of_each_kind() -> None:
    model = toys.linear((1.0, 2.0))
    averager = evaluate(model, averages={"w": Window(2, every=1), "e": EMA(0.5), "m": RunningMean()})
    averager.update()
    assert all(averager.is_finite(name) for name in averager.averages)
    with torch.no_grad():
        model.weight[0, 1] = float("inf")
    averager.update()
    assert not any(averager.is_finite(name) for name in averager.averages)
    for _ in range(2):
        toys.fill(model, 1.0)
        averager.update()
    assert averager.is_finite("w"), "it has left the window"


def test_evaluating_a_non_finite_average_is_allowed() -> None:
    model = toys.linear((float("nan"),))
    averager = evaluate(model, every=1, window=1)
    averager.update()
    assert np.isnan(toys.seen_by(averager)["weight"]).all()


# ---- placement


@pytest.mark.parametrize("mode", ["evaluate", "replace"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_host_and_device_placement_have_the_same_bits(mode: str, dtype: torch.dtype) -> None:
    ends = []
    for placement in ("device", "host"):
        model = toys.Tied(dtype=dtype)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
        averager = WeightAverager(
            model, optimizer, mode=mode, every=1, window=3, placement=placement, coefficients="linear"
        )
        for t in range(1, 7):
            toys.train_step(model, optimizer, t)
            averager.update()
        ends.append((toys.weights(model), toys.seen_by(averager)))
    assert toys.same_weights(ends[0][0], ends[1][0])
    assert toys.same_weights(ends[0][1], ends[1][1])


def test_placements_have_names() -> None:
    with pytest.raises(LawaError, match="placement='gpu' must be one of device, host"):
        evaluate(toys.linear(), every=1, placement="gpu")


def test_copies_overlap_training_only_when_the_optimizer_moves_all_that_is_captured() -> None:
    """A second optimizer (Muon beside AdamW) would step into a copy that only the first one's hook protects."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    all_of_it = torch.optim.SGD(model.parameters(), lr=0.1)
    a_part = torch.optim.SGD(model[0].parameters(), lr=0.1)
    for optimizer, overlaps in ((all_of_it, True), (a_part, False), (None, False)):
        averager = WeightAverager(model, optimizer, mode="evaluate", every=1, placement="host")
        assert averager._store.overlap is overlaps  # type: ignore[attr-defined]


# ---- bytes


SCRATCH = 3 * 512 * 4  # a few blocks, which are no part of an estimate


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(block_size.__globals__["_BLOCK"], "cpu", 512)


REPLACE: dict[str, Any] = {"mode": "replace", "every": 1, "window": 3}
COSTS: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "window": (torch.float32, {"mode": "evaluate", "every": 1, "window": 3}),
    "window on the host": (torch.bfloat16, {"mode": "evaluate", "every": 1, "window": 3, "placement": "host"}),
    "EMA": (torch.bfloat16, {"mode": "evaluate", "averages": {"e": EMA(0.9)}}),
    "running mean": (torch.bfloat16, {"mode": "evaluate", "averages": {"m": RunningMean()}}),
    "many": (torch.bfloat16, {"mode": "evaluate", "averages": AVERAGES}),
    "replace": (torch.bfloat16, REPLACE),
    "clear": (torch.bfloat16, {**REPLACE, "after_replace": "clear"}),
    "moments": (torch.float32, {**REPLACE, "moments": "average"}),
    "strength": (torch.bfloat16, {**REPLACE, "strength": 0.5}),
    "moments and strength": (torch.float32, {**REPLACE, "strength": 0.5, "moments": "average"}),
    "running mean replaces": (
        torch.bfloat16,
        {"mode": "replace", "averages": {"m": RunningMean()}, "replace_every": 3, "strength": 0.5},
    ),
}


@pytest.mark.parametrize(("dtype", "settings"), COSTS.values(), ids=COSTS)
@pytest.mark.usefixtures("small_blocks")
def test_the_estimate_is_what_is_really_allocated(dtype: torch.dtype, settings: dict[str, Any]) -> None:
    model = nn.Sequential(nn.Linear(64, 64, dtype=dtype), nn.Linear(64, 64, dtype=dtype))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 64, dtype=dtype)).sum().backward()
    optimizer.step()
    cost = lawa.estimate(model, optimizer, **settings)
    averager = WeightAverager(model, optimizer, **settings)
    assert averager.cost() == cost
    memory = toys.Memory()
    memory.ignore(*model.parameters())
    swap = saved = 0
    with memory:
        for _ in range(30):
            averager.capture()
            saved = max(saved, bytes_of(averager.state_dict()))
            held = memory.peak = memory.alive
            averager.replace_if_due()
            swap = max(swap, memory.peak - held)
            for name in averager.averages:
                if averager.count(name):
                    memory.peak = 0
                    with averager.averaged(name):
                        pass
                    swap = max(swap, memory.peak - held)
    assert cost.device + cost.host <= memory.alive <= cost.device + cost.host + SCRATCH
    assert cost.swap <= swap <= cost.swap + SCRATCH
    assert saved == cost.disk


def bytes_of(state: dict[str, Any]) -> int:
    """Of the tensors; each parameter of this model fills whole cache lines."""
    return sum(t.nbytes for kind in ("snapshots", "running") for named in state[kind].values() for t in named.values())


def test_an_estimate_leaves_nothing_behind() -> None:
    model = toys.Tied()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    memory = toys.Memory()
    with memory:
        lawa.estimate(model, optimizer, mode="evaluate", every=1, window=1000, placement="host")
    assert memory.new == 0
    assert not optimizer._optimizer_step_pre_hooks


def test_a_cost_reads_as_a_sentence() -> None:
    cost = lawa.estimate(nn.Linear(1000, 1000, bias=False), mode="evaluate", every=1, window=10)
    assert str(cost) == (
        "10 snapshots: 0 B on the device, 40.0 MB on the host, 8.0 MB more during a swap, 40.0 MB on disk a saved state"
    )


# ---- settings


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"mode": "average"}, "mode='average' must be 'evaluate' or 'replace'"),
        ({"mode": "evaluate", "every": 0}, "every=0 must be at least 1"),
        ({"mode": "evaluate", "window": 0}, "window=0 must be at least 1"),
        ({"mode": "evaluate", "window": 2.0}, "window=2.0 must be a whole number"),
        ({"mode": "evaluate", "window": 3, "min_window": 4}, "min_window=4 is more than the window of 3"),
        ({"mode": "evaluate", "window": 4, "every": 10, "stop": 30}, "never fills: captures stop at 30, after 3 of 4"),
        ({"mode": "evaluate", "accumulate": torch.bfloat16}, "accumulate=torch.bfloat16 must be"),
        ({"mode": "evaluate", "averages": {}}, "averages is empty"),
        ({"mode": "evaluate", "averages": {"a": 10}}, "average 'a' is 10; it must be a Window"),
        ({"mode": "evaluate", "averages": {"plain": EMA(0.9)}}, "'plain' cannot name an average"),
        ({"mode": "evaluate", "averages": {"a/b": EMA(0.9)}}, "'a/b' cannot name an average"),
        ({"mode": "evaluate", "averages": {"": EMA(0.9)}}, "'' cannot name an average"),
        ({"mode": "evaluate", "averages": {"..": EMA(0.9)}}, "'..' cannot name an average"),
        ({"mode": "evaluate", "averages": {"a": EMA(0.9)}, "every": 5}, "every belong to the short form"),
        ({"mode": "replace", "averages": {"a": EMA(0.9), "b": EMA(0.8)}}, "replace_with must name .* one of a, b"),
        ({"mode": "replace", "replace_with": "x"}, "average 'x' is unknown; name one of lawa"),
        (
            {"mode": "replace", "averages": {"a": EMA(0.9)}},
            "replacing with 'a', a running average, needs replace_every",
        ),
        ({"mode": "replace", "after_replace": "empty"}, "after_replace='empty' must be 'slide' or 'clear'"),
        ({"mode": "replace", "after_replace": ""}, "after_replace='' must be 'slide' or 'clear'"),
        ({"mode": "replace", "strength": 0}, r"strength=0 must lie in \(0, 1\]"),
        ({"mode": "replace", "strength": 1.1}, "strength=1.1 must lie in"),
        ({"mode": "replace", "strength": "1"}, "strength='1' must lie in"),
        ({"mode": "replace", "strength": True}, "strength=True must lie in"),
        ({"mode": "replace", "strength": float("nan")}, "strength=nan must lie in"),
        ({"mode": "replace", "moments": "zero"}, "moments='zero' must be one of keep, reset, average"),
        ({"mode": "replace", "moments": ""}, "moments='' must be one of keep, reset, average"),
        ({"mode": "replace", "moments": "reset"}, "moments='reset' needs the optimizer"),
        ({"mode": "replace", "window": 3, "min_window": 2, "after_replace": "clear"}, "never fills the window of 3"),
        ({"mode": "replace", "every": 10, "replace_every": 15}, "replace_every=15 is not a multiple of every=10"),
        ({"mode": "replace", "every": 10, "window": 3, "replace_until": 29}, "replace_until=29 comes before .* at 30"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(LawaError, match=sentence):
        WeightAverager(toys.linear(), **settings)


def test_averaging_the_moments_needs_a_window() -> None:
    model = toys.linear()
    with pytest.raises(LawaError, match="moments='average' needs a window; 'a' is a running average"):
        replace(
            model, torch.optim.Adam(model.parameters()), averages={"a": EMA(0.9)}, replace_every=2, moments="average"
        )


def test_the_mode_has_no_default() -> None:
    with pytest.raises(TypeError, match="mode"):
        WeightAverager(toys.linear())  # type: ignore[call-arg]


def test_the_short_form_is_one_window_named_lawa_with_the_descriptions_defaults() -> None:
    assert evaluate(toys.linear()).averages == {"lawa": Window(10, every=1000, start=1, stop=None)}
    given_all = evaluate(
        toys.linear(), every=5, window=4, start=2, stop=40, coefficients="linear", min_window=2
    ).averages["lawa"]
    assert given_all == Window(4, every=5, start=2, stop=40, coefficients="linear", min_window=2)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("replace_with", "lawa"), ("after_replace", "clear"), ("replace_every", 2000), ("replace_until", 20000),
        ("strength", 0.5), ("moments", "keep"),
    ],
)  # fmt: skip
def test_a_setting_without_effect_is_warned_about(setting: str, value: Any) -> None:
    with pytest.warns(UserWarning, match=f"{setting}={value!r} has no effect with mode='evaluate'"):
        evaluate(toys.linear(), **{setting: value})
    model = toys.linear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        replace(model, torch.optim.Adam(model.parameters()), **{setting: value})


def test_averages_are_described_in_a_line() -> None:
    assert str(Window(3, every=5, coefficients={"ema": 0.5})) == "window 3, every 5, {'ema': 0.5}"
    assert str(Window(2, every=5, coefficients=[0.5, 0.5])) == "window 2, every 5, [0.5, 0.5]"
    assert str(EMA(0.999)) == "EMA beta 0.999, every 1"
    assert str(RunningMean(start=7)) == "running mean from 7, every 1"


# ---- steps between which there is no order


@settings(deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=12), st.integers(1, 3), st.integers(1, 3))
def test_a_trainer_that_jumps_captures_only_where_it_lands(jumps: list[int], every: int, size: int) -> None:
    model = toys.linear((0.0,))
    averager = evaluate(model, every=every, window=size)
    t, landed = 0, []
    for jump in jumps:
        t += jump
        landed.append(t)
        averager.update(step=t)
    assert averager.steps() == [step for step in landed if step % every == 0][-size:]
    assert all(earlier < later for earlier, later in pairwise(averager.steps()))


@pytest.mark.parametrize("attribute", ["single_partition_of_fp32_groups", "shard_fp32_from_float16_groups"])
def test_an_optimizer_with_masters_of_its_own_is_refused(attribute: str) -> None:
    """DeepSpeed's and Megatron's would write their masters over the replaced weights at the next step."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    setattr(optimizer, attribute, [])
    with pytest.raises(LawaError, match=f"SGD keeps fp32 masters of its own \\({attribute}\\)"):
        WeightAverager(model, optimizer, mode="evaluate")


def test_after_close_the_optimizer_has_no_hook_of_ours() -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    averager = WeightAverager(model, optimizer, mode="evaluate", every=1, window=2, placement="host")
    averager.attach()
    assert optimizer._optimizer_step_pre_hooks
    assert optimizer._optimizer_step_post_hooks
    averager.close()
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_averaged_buffers_keep_a_host_copy_from_overlapping() -> None:
    """BatchNorm's statistics change in the next forward, which no optimizer hook comes before."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for buffers, overlaps in (("latest", True), ("average", False)):
        averager = WeightAverager(model, optimizer, mode="evaluate", placement="host", buffers=buffers)
        assert averager._store.overlap is overlaps  # type: ignore[attr-defined]
