"""Plain PyTorch loops as people write them: loss scalers, several optimizers, accumulation, compiled models and
activation checkpointing, by hand and attached; the whole contract runs over them in tests/contracts."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.utils.checkpoint import checkpoint

from lawa import LawaError, WeightAverager

ROOT = Path(__file__).parents[2]


class Two(nn.Module):
    """Two layers; the second one may be recomputed in the backward pass."""

    def __init__(self, *, recompute: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.recompute = recompute

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        return checkpoint(self.second, x, use_reentrant=False) if self.recompute else self.second(x)  # type: ignore[return-value]


def loss_of(model: nn.Module, t: int) -> Tensor:
    return model(torch.randn(8, 4, generator=torch.Generator().manual_seed(t))).square().mean()


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def mean(snapshots: list[list[Tensor]]) -> list[Tensor]:
    """Bit for bit: a sum from zero, oldest first, times float32(1/k)."""
    total = [torch.zeros_like(one) for one in snapshots[0]]
    for snapshot in snapshots:
        total = [a + b for a, b in zip(total, snapshot, strict=True)]
    return [a * torch.tensor(1 / len(snapshots)) for a in total]


def average(averager: WeightAverager) -> list[Tensor]:
    with averager.averaged() as model:
        return weights(model)


# ---- a loss scaler


def adamw(parameters: Any, *, fused: bool = False) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.05, fused=fused)


class Scaled:
    """A loop with a loss scaler, whose losses are infinite at the updates in `overflows`."""

    def __init__(self, *optimizers: torch.optim.Optimizer, overflows: tuple[int, ...]) -> None:
        self.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        self.optimizers, self.overflows = optimizers, overflows

    def update(self, model: nn.Module, t: int, which: int | None = None) -> None:
        """which: only the parameters of this optimizer overflow, by the hook of a gradient."""
        loss = loss_of(model, t)
        hooks = []
        if t in self.overflows and which is None:
            loss = loss * float("inf")
        elif t in self.overflows and which is not None:
            for group in self.optimizers[which].param_groups:
                hooks += [one.register_hook(lambda gradient: gradient * float("inf")) for one in group["params"]]
        self.scaler.scale(loss).backward()
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("unscale", [False, True])
def test_attached_with_a_scaler_every_update_counts_and_skipped_ones_are_marked(fused: bool, unscale: bool) -> None:
    model = Two()
    optimizer = adamw(model.parameters(), fused=fused)
    averager = WeightAverager(model, optimizer, mode="evaluate", every=1, window=6)
    loop = Scaled(optimizer, overflows=(1, 4, 5))
    averager.attach(scaler=loop.scaler)
    if unscale and not fused:  # clipping; a fused optimizer unscales by itself
        step = loop.scaler.step
        loop.scaler.step = lambda one: (loop.scaler.unscale_(one), step(one))  # type: ignore[method-assign]
    after = []
    for t in range(1, 7):
        loop.update(model, t)
        after.append(weights(model))
        assert averager.step == t
    assert same(after[4], after[2]), "4 and 5 were skipped"
    assert averager.steps() == [1, 2, 3, 4, 5, 6]
    assert averager.skipped() == [1, 4, 5]
    assert same(average(averager), mean(after))


@pytest.mark.parametrize("fused", [False, True])
def test_by_hand_the_scaler_says_what_it_skipped(fused: bool) -> None:
    model = Two()
    optimizer = adamw(model.parameters(), fused=fused)
    averager = WeightAverager(model, optimizer, mode="replace", every=2, window=2)
    loop = Scaled(optimizer, overflows=(4,))
    captured = []
    for t in range(1, 5):
        scale = loop.scaler.get_scale()
        loop.update(model, t)
        captured += [weights(model)] if t % 2 == 0 else []
        assert averager.update(skipped=loop.scaler.get_scale() < scale) == (t == 4)
    assert averager.skipped() == [4]
    assert same(weights(model), mean(captured))


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("fused", [(False, False), (True, True), (False, True), (True, False)])
def test_with_several_optimizers_an_update_is_skipped_where_any_is(fused: tuple[bool, bool], which: int) -> None:
    model = Two()
    optimizers = [
        adamw(part.parameters(), fused=one) for part, one in zip((model.first, model.second), fused, strict=True)
    ]
    averager = WeightAverager(model, optimizers, mode="evaluate", every=1, window=4)
    loop = Scaled(*optimizers, overflows=(2,))
    averager.attach(scaler=loop.scaler)
    after = []
    for t in range(1, 5):
        loop.update(model, t, which=which)
        after.append(weights(model))
        assert averager.step == t
    moved = [not torch.equal(a, b) for a, b in zip(after[0], after[1], strict=True)]
    assert moved == ([False, False, True, True] if which == 0 else [True, True, False, False])
    assert averager.skipped() == [2]
    assert same(average(averager), mean(after))


def test_without_the_scaler_a_skipped_step_of_an_unfused_optimizer_is_no_update() -> None:
    model = Two()
    optimizer = adamw(model.parameters())
    averager = WeightAverager(model, optimizer, mode="evaluate", every=1, window=4)
    averager.attach()
    loop = Scaled(optimizer, overflows=(2,))
    for t in range(1, 4):
        loop.update(model, t)
    assert averager.steps() == [1, 2]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_averagers_share_a_scaler_and_let_go_of_it_in_any_order(order: tuple[int, int]) -> None:
    models = Two(), Two()
    optimizers = [adamw(model.parameters()) for model in models]
    averagers = [
        WeightAverager(model, optimizer, mode="evaluate", every=1, window=9)
        for model, optimizer in zip(models, optimizers, strict=True)
    ]
    loops = [Scaled(optimizer, overflows=(2, 4)) for optimizer in optimizers]
    loops[1].scaler = loops[0].scaler
    handles = [averager.attach(scaler=loops[0].scaler) for averager in averagers]

    def update(t: int) -> None:
        for model, loop in zip(models, loops, strict=True):
            loop.update(model, t)

    update(1)
    update(2)
    handles[order[0]].remove()
    update(3)
    update(4)
    gone, left = (averagers[one] for one in order)
    assert (gone.steps(), gone.skipped()) == ([1, 2], [2])
    assert (left.steps(), left.skipped()) == ([1, 2, 3, 4], [2, 4])
    handles[order[1]].remove()
    update(5)
    assert left.step == 4
    for averager in averagers:
        averager.update()
    assert (gone.step, left.step) == (3, 5)


def test_removed_the_handle_leaves_optimizer_and_scaler_as_they_were() -> None:
    model = Two()
    optimizer = adamw(model.parameters())
    loop = Scaled(optimizer, overflows=())
    before = dict(vars(loop.scaler))
    averager = WeightAverager(model, optimizer, mode="evaluate", every=1, window=2)
    with averager.attach(scaler=loop.scaler):
        loop.update(model, 1)
    assert vars(loop.scaler).keys() == before.keys()
    assert not optimizer._optimizer_step_post_hooks
    gone = weakref.ref(averager)
    averager.close()
    del averager
    gc.collect()
    assert gone() is None


def test_the_device_is_asked_only_where_a_capture_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Two()
    optimizer = adamw(model.parameters(), fused=True)
    averager = WeightAverager(model, optimizer, mode="evaluate", every=3, window=2)
    loop = Scaled(optimizer, overflows=(3,))
    asked: list[int] = []

    class Found:
        def __init__(self, value: Tensor, t: int) -> None:
            self.value, self.t = value, t

        def __bool__(self) -> bool:
            asked.append(self.t)
            return bool(self.value)

    averager.attach(scaler=loop.scaler)
    assert averager._attachment is not None
    over: Callable[..., None] = averager._attachment._over
    monkeypatch.setattr(averager._attachment, "_over", lambda one, found: over(one, Found(found, averager.step + 1)))
    for t in range(1, 7):
        loop.update(model, t)
    assert set(asked) == {3, 6}
    assert averager.skipped() == [3]


# ---- several optimizers, accumulation, schedules


def muon_and_adamw(model: Two) -> list[torch.optim.Optimizer]:
    matrices = [one for one in model.parameters() if one.ndim == 2]
    others = [one for one in model.parameters() if one.ndim != 2]
    return [torch.optim.Muon(matrices, lr=0.02), torch.optim.AdamW(others, lr=0.01)]


@pytest.mark.parametrize("moments", ["keep", "reset"])
@pytest.mark.parametrize("attached", [True, False])
def test_muon_and_adamw(attached: bool, moments: str) -> None:
    model = Two()
    optimizers = muon_and_adamw(model)
    averager = WeightAverager(model, optimizers, mode="replace", every=1, window=2, moments=moments)
    if attached:
        averager.attach()
    captured: list[list[Tensor]] = []
    for t in range(1, 5):
        loss_of(model, t).backward()
        seen: list[list[Tensor]] = []
        for one in optimizers:
            one.step()
            seen.append(weights(model))
            one.zero_grad()
        if not attached:
            averager.update()
            captured.append(seen[-1])
        assert averager.step == t
        assert averager.last_replacement == (t if t > 1 else None)
        states = [value for one in optimizers for state in one.state.values() for value in state.values()]
        assert all(not value.any() for value in states) == (moments == "reset" and t > 1)
        if not attached and t > 1:
            assert same(weights(model), mean(captured[-2:]))


def test_moments_average_says_that_muon_keeps_none() -> None:
    model = Two()
    with pytest.raises(LawaError, match=r"needs Adam's .*which Muon does not keep; choose 'keep'"):
        WeightAverager(model, muon_and_adamw(model), mode="replace", every=1, window=2, moments="average")


@pytest.mark.parametrize("attached", [True, False])
def test_accumulation_counts_updates(attached: bool) -> None:
    model = Two()
    optimizer = adamw(model.parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 / (1 + t))  # it wraps optimizer.step
    averager = WeightAverager(model, optimizer, mode="evaluate", every=2, window=2)
    if attached:
        averager.attach()
    captured = []
    for batch in range(1, 21):
        (loss_of(model, batch) / 4).backward()
        if batch % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            if not attached:
                averager.update()
            captured += [weights(model)] if averager.step % 2 == 0 else []
    assert averager.step == 5
    assert averager.steps() == [2, 4]
    assert same(average(averager), mean(captured))


def test_optimizers_that_step_at_different_times_are_told_to_update_by_hand() -> None:
    model = Two()
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in (model.first, model.second)]
    averager = WeightAverager(model, optimizers, mode="evaluate", every=1, window=2)
    averager.attach()
    loss_of(model, 1).backward()
    optimizers[0].step()
    with pytest.raises(LawaError, match=r"SGD has stepped twice before every attached optimizer did.*call update"):
        optimizers[0].step()
    assert averager.step == 0


def test_an_optimizer_with_a_closure_steps_once() -> None:
    model = Two()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
    averager = WeightAverager(model, optimizer, mode="evaluate", every=1, window=2)
    averager.attach()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, 1)
        loss.backward()
        return loss

    for _ in range(2):
        optimizer.step(closure)  # type: ignore[arg-type]
    assert averager.steps() == [1, 2]


# ---- between forward and backward


def test_weights_that_change_between_forward_and_backward_are_an_error_and_not_a_wrong_gradient() -> None:
    model = Two()
    averager = WeightAverager(model, mode="evaluate", every=1, window=1)
    averager.update()
    with torch.no_grad():
        model.second.weight.add_(1.0)
    loss = loss_of(model, 1)
    with averager.averaged():
        pass
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# ---- activation checkpointing and compiled models


def trained(model: nn.Module, averager: WeightAverager, updates: int = 6) -> tuple[list[Tensor], list[Tensor]]:
    optimizer = averager.optimizers[0]
    for t in range(1, updates + 1):
        loss_of(model, t).backward()
        optimizer.step()
        optimizer.zero_grad()
        averager.update()
    with averager.averaged(), torch.no_grad():
        loss = loss_of(model, 99)
    return weights(model), [*average(averager), loss]


def reference() -> tuple[list[Tensor], list[Tensor]]:
    model = Two()
    return trained(model, averager_of(model))


def averager_of(model: nn.Module) -> WeightAverager:
    return WeightAverager(model, adamw(model.parameters()), mode="replace", every=2, window=2)


NAMES = ["first.bias", "first.weight", "second.bias", "second.weight"]


def captured_names(averager: WeightAverager) -> list[str]:
    return sorted(next(iter(averager.state_dict()["snapshots"].values())))


def test_recomputed_activations_are_those_of_the_weights_that_the_forward_pass_saw() -> None:
    model = Two(recompute=True)
    found = trained(model, averager_of(model))
    for left, right in zip(found, reference(), strict=True):
        assert same(left, right)


def test_checkpoint_wrappers_do_not_change_names() -> None:
    model = Two()
    apply_activation_checkpointing(model, check_fn=lambda module: isinstance(module, nn.Linear))
    assert any("_checkpoint_wrapped_module" in name for name, _ in model.named_parameters())
    averager = averager_of(model)
    found = trained(model, averager)
    assert captured_names(averager) == NAMES
    for left, right in zip(found, reference(), strict=True):
        assert same(left, right)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it imports its compiler
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
@pytest.mark.parametrize("bound", ["before", "after", "in place"])
def test_a_compiled_model_computes_with_the_weights_that_replaced_its_own(bound: str, backend: str) -> None:
    torch._dynamo.reset()
    plain = Two()
    if bound == "before":
        averager = averager_of(plain)
        model: Any = torch.compile(plain, backend=backend)
    elif bound == "after":
        model = torch.compile(plain, backend=backend)
        averager = averager_of(model)
        assert any("_orig_mod" in name for name, _ in model.named_parameters())
    else:
        plain.compile(backend=backend)
        model, averager = plain, averager_of(plain)
    found = trained(model, averager)
    assert captured_names(averager) == NAMES
    for left, right in zip(found, reference(), strict=True):
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    state = averager.state_dict()
    fresh = averager_of(Two())
    fresh.load_state_dict(state)
    assert fresh.steps() == averager.steps()
    with averager.averaged(), torch.no_grad():
        compiled, eager = loss_of(model, 7), loss_of(plain, 7)
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_example_shows_the_average_at_work(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples/plain_pytorch.py")],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    numbers = [float(word.rstrip(",")) for word in done.stdout.splitlines()[-1].split() if "." in word]
    assert len(numbers) == 2
    assert numbers[1] < numbers[0] - 0.02
