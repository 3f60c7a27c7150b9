"""Where snapshots lie and what they cost, against what is really allocated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lawa
from averaging import toys
from averaging.toys import evaluate
from lawa import EMA, RunningMean, WeightAverager, Window
from lawa.averaging.mean import block_size
from lawa.averaging.stores import DeviceStore
from lawa.errors import LawaError

LAST = 14
Weights = dict[str, np.ndarray]


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
    "many": (torch.bfloat16, {"mode": "evaluate", "averages": toys.AVERAGES}),
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


class Durable(DeviceStore):
    """Keeps at most one snapshot in memory, and gives them one group at a time."""

    durable = True

    def nbytes(self, snapshots: int) -> tuple[int, int]:
        return super().nbytes(min(snapshots, 1))


def test_a_durable_store_costs_a_group_during_a_swap_and_nothing_in_a_saved_state() -> None:
    model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 32, bias=False, dtype=torch.bfloat16))
    first, second = 64 * 64 * 4, 64 * 32 * 2
    settings: dict[str, Any] = {"averages": {"w": Window(4, every=2), "e": EMA(0.9)}}
    plain = lawa.estimate(model, mode="evaluate", **settings)
    durable = lawa.estimate(model, mode="evaluate", placement=Durable, **settings)
    running = first + 2 * second  # the EMA's state is fp32
    assert plain.snapshot == durable.snapshot == first + second
    assert (plain.host, plain.disk) == (4 * (first + second) + running, 4 * (first + second) + running)
    assert (durable.host, durable.disk) == (first + second + running, running)
    assert (plain.swap, durable.swap) == (2 * (first + second), 2 * (first + second) + first)
    replacing = lawa.estimate(model, mode="replace", every=1, window=4, placement=Durable)
    assert replacing.disk == 0
    assert replacing.swap == durable.swap


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
