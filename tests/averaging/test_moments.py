"""Adam's moments on a replacement: kept, reset, averaged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import twins
from averaging import toys
from averaging.toys import replace
from lawa.errors import LawaError

LAST = 14
Weights = dict[str, np.ndarray]


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
