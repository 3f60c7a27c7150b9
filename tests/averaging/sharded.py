"""What every rank does in test_sharded.py: real processes, gloo, FSDP2 on a CPU mesh.

    python -m torch.distributed.run --standalone --nproc-per-node 2 tests/averaging/sharded.py CHECK [FOLDER]

A check that fails raises on its rank, and the launch fails.
"""

from __future__ import annotations

import copy
import inspect
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode

import twins
from averaging import toys
from launching import run_to_the_end
from lawa import EMA, RunningMean, WeightAverager, Window

Weights = dict[str, np.ndarray]
LAST = 7
AVERAGES: dict[str, Any] = {
    "w": Window(3, every=1),
    "filling": Window(6, every=1),
    "weighted": Window(2, every=2, coefficients="one_minus_sqrt"),
    "ema": EMA(0.7),
    "mean": RunningMean(start=2),
}


class Model(nn.Module):
    """Tied, with shards of every size: 11, 5, 3 and 1 rows on 2 or 3 ranks are uneven, and some are empty."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(11, 4)
        self.blocks = nn.ModuleList([nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(3, 1), nn.Linear(1, 4)])
        self.scale = nn.Parameter(torch.ones(4), requires_grad=False)
        self.head = nn.Linear(4, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = torch.tanh(block(x))
        return self.head(x * self.scale)


def sharded(**settings: Any) -> nn.Module:
    """A Model of which every rank holds its shards, the same on any number of ranks; settings of fully_shard."""
    model = Model()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh, **settings)
    fully_shard(model, mesh=mesh, **settings)
    return model


def loss(model: nn.Module, t: int) -> Tensor:
    tokens = torch.randint(0, 11, (4, 6), generator=torch.Generator().manual_seed(t))
    return nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def look(model: nn.Module, t: int) -> float:
    """The loss without gradients, which leaves FSDP2's unsharded parameters behind."""
    with torch.no_grad():
        return loss(model, t).item()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, t: int) -> None:
    loss(model, 100 * dist.get_rank() + t).backward()
    optimizer.step()
    optimizer.zero_grad()


def wander(model: nn.Module, t: int) -> None:
    """The same θ_t on any number of ranks."""
    for number, (_, parameter) in enumerate(model.named_parameters()):
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(100 * t + number))
            with torch.no_grad():
                if isinstance(parameter, DTensor):
                    noise = distribute_tensor(noise, parameter.device_mesh, parameter.placements)
                parameter.add_(noise)


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def weights(model: nn.Module) -> Weights:
    """{name: values} gathered from all ranks."""
    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()
    return {name: twins.array(whole(parameter)) for name, parameter in model.named_parameters()}


def inside(averager: WeightAverager, name: str | None = None) -> Weights:
    with averager.averaged(name) as model:
        return weights(model)


class NoCollectives(TorchDispatchMode):
    """Counts what goes between ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "c10d" in func.namespace:
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@contextmanager
def no_collectives() -> Iterator[None]:
    with NoCollectives() as counter:
        yield
    assert not counter.seen, counter.seen


# ---- the checks


def the_counter_counts() -> None:
    model = sharded()
    with NoCollectives() as counter:
        loss(model, 1).backward()
    assert any("allgather" in name for name in counter.seen), counter.seen
    assert any("reduce_scatter" in name for name in counter.seen), counter.seen


def averages_are_those_of_the_whole_model_without_a_collective() -> None:
    """Captured and averaged shard by shard; gathered afterwards, the bits of a model that was never sharded."""
    model, twin = sharded(), Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    averager = WeightAverager(model, optimizer, mode="evaluate", averages=AVERAGES)
    unsharded = WeightAverager(twin, mode="evaluate", averages=AVERAGES)
    for t in range(1, LAST + 1):
        train(model, optimizer, t)
        twin.load_state_dict({name: torch.from_numpy(value) for name, value in weights(model).items()}, strict=False)
        look(model, t)
        with no_collectives():
            averager.update()
        unsharded.update()
        for name in AVERAGES:
            if unsharded.count(name):
                with no_collectives(), averager.averaged(name):
                    pass
                assert toys.same_weights(inside(averager, name), toys.seen_by(unsharded, name)), (name, t)
        assert toys.same_weights(weights(model), toys.weights(twin))
    assert averager.steps("w") == [5, 6, 7]
    assert model.head.weight is model.embed.weight
    for snapshot in averager.state_dict()["snapshots"].values():
        assert all(isinstance(tensor, DTensor) for tensor in snapshot.values())
        assert set(snapshot) == set(dict(twin.named_parameters())) - {"scale"}


def replacement_is_that_of_the_whole_model() -> None:
    """Weights and moments; the one collective is the flag that all of it is finite."""
    for strength in (1, 0.25):
        model, twin = sharded(), Model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
        settings: dict[str, Any] = {"mode": "replace", "every": 1, "window": 2, "strength": strength}
        averager = WeightAverager(model, optimizer, moments="average", **settings)
        unsharded = WeightAverager(twin, **settings)
        moments: list[Weights] = []
        for t in range(1, 5):
            train(model, optimizer, t)
            reached = weights(model)
            twin.load_state_dict({name: torch.from_numpy(value) for name, value in reached.items()}, strict=False)
            moments.append(moments_of(model, optimizer))
            look(model, t)
            with no_collectives():
                averager.capture()
            unsharded.capture()
            with NoCollectives() as counter:
                replaced = averager.replace_if_due()
            assert len(counter.seen) == (t >= 2), counter.seen
            assert replaced == unsharded.replace_if_due() == (t >= 2)
            assert toys.same_weights(weights(model), toys.weights(twin)), t
            if replaced and strength == 1:
                want = {name: twins.uniform([seen[name] for seen in moments[-2:]]) for name in moments[-1]}
                assert toys.same_weights(moments_of(model, optimizer), want)
            assert look(model, t) == look(twin, t), "the next forward has the average, not what it unsharded before"


def moments_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> Weights:
    return {
        f"{moment}.{name}": twins.array(whole(optimizer.state[parameter][moment]))
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        for moment in ("exp_avg", "exp_avg_sq")
    }


def one_bad_rank_and_all_skip() -> None:
    """The flag is agreed on: no rank replaces alone, and each says where the trouble is, as far as it knows."""
    model = sharded()
    averager = WeightAverager(model, mode="replace", every=1, window=2)
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("lawa").addHandler(handler)
    averager.update()
    before = copy.deepcopy(model.embed.weight.to_local().detach())
    if dist.get_rank() == 1:
        with torch.no_grad():
            model.blocks[0].bias.to_local()[0] = float("nan")
    assert averager.update() is False
    assert torch.equal(model.embed.weight.to_local(), before)
    where = "'blocks.0.bias'" if dist.get_rank() == 1 else '"another rank\'s shard"'
    assert len(records) == 1, records
    assert f"not finite (first in {where}); replacement skipped" in records[0], records
    assert not averager.is_finite()


def a_fresh_averager_goes_on_in_the_middle_of_a_window(folder: Path) -> None:
    model = sharded()
    averager = go(model, None, 1, 4)
    save(model, averager, folder)
    resumed = sharded()
    assert toys.same_weights(ends(model, averager), ends(*load(resumed, folder)))


# ---- saving on some ranks, going on on others


def go(model: nn.Module, averager: WeightAverager | None, first: int, last: int) -> WeightAverager:
    if averager is None:
        averager = WeightAverager(model, mode="replace", averages=AVERAGES, replace_with="w")
    for t in range(first, last + 1):
        averager.replace_if_due()
        wander(model, t)
        averager.capture(t)
    return averager


def ends(model: nn.Module, averager: WeightAverager) -> Weights:
    """Everything after three more updates, gathered."""
    go(model, averager, 5, LAST)
    assert averager.replacement_pending
    averager.replace_if_due()
    seen = {f"weights.{name}": value for name, value in weights(model).items()}
    for average in AVERAGES:
        seen |= {f"{average}.{name}": value for name, value in inside(averager, average).items()}
    return seen


def save(model: nn.Module, averager: WeightAverager, folder: Path) -> None:
    assert averager.replacement_pending, "nothing is lost on the way, not even this"
    dcp.save({"model": model.state_dict(), "averager": averager}, checkpoint_id=folder)


def load(model: nn.Module, folder: Path, **more: Any) -> tuple[nn.Module, WeightAverager]:
    averager = WeightAverager(model, mode="replace", averages=AVERAGES, replace_with="w")
    averager.prepare_to_load(folder)
    weights_only = model.state_dict()
    dcp.load({"model": weights_only, "averager": averager}, checkpoint_id=folder, **more)
    model.load_state_dict(weights_only)
    assert averager.step == 4
    assert averager.steps("w") == [2, 3, 4]
    assert averager.steps("filling") == [1, 2, 3, 4]
    return model, averager


def save_for_others(folder: Path, model: nn.Module | None = None) -> None:
    model = sharded() if model is None else model
    averager = go(model, None, 1, 4)
    save(model, averager, folder / "checkpoint")
    seen = ends(model, averager)
    if dist.get_rank() == 0:
        np.savez(folder / "expected.npz", **seen)


def load_from_others(folder: Path, model: nn.Module | None = None) -> None:
    compare(ends(*load(sharded() if model is None else model, folder / "checkpoint")), folder)


def compare(seen: Weights, folder: Path) -> None:
    with np.load(folder / "expected.npz") as expected:
        assert toys.same_weights(seen, dict(expected))


CHECKS = {
    check.__name__: check
    for check in (
        the_counter_counts,
        averages_are_those_of_the_whole_model_without_a_collective,
        replacement_is_that_of_the_whole_model,
        one_bad_rank_and_all_skip,
        a_fresh_averager_goes_on_in_the_middle_of_a_window,
    )
}
ALONE = {
    "save_for_others": lambda folder: save_for_others(folder),
    "load_from_others": lambda folder: load_from_others(folder),
}


def run(checks: dict[str, Callable[..., None]]) -> None:
    """Those that the command line names after the folder."""
    folder, *names = sys.argv[1:]
    dist.init_process_group("gloo")
    for name in names:
        check = checks[name]
        check(*[Path(folder)] * len(inspect.signature(check).parameters))
        os.write(sys.stdout.fileno(), f"rank {dist.get_rank()}: {name}\n".encode())  # whole, between other ranks'
    dist.barrier()


if __name__ == "__main__":
    run_to_the_end(lambda: run({**CHECKS, **ALONE}))
