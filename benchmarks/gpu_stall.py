"""How long a capture holds up a GPU: read off the compute stream itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gpu_device import Device, Mark, Sizes
from lawa import WeightAverager
from lawa.averaging.averages import Average
from measure import Check, Found, Record, Spread, alternate, interleave, milliseconds, over

WINDOW = 3  # for a capture's cost any full window is like any other


class Work:
    """Updates as a GPU sees them: matrix products, then an optimizer's step on the model's weights, never a sync."""

    def __init__(self, device: Device, sizes: Sizes) -> None:
        self.device, self.sizes = device, sizes
        self.model = sizes.model().to(device.torch)
        for parameter in self.model.parameters():
            parameter.grad = torch.randn_like(parameter)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-6)
        shape = (sizes.side, sizes.side)
        self.a, self.b, self.c = (torch.randn(shape, device=device.torch, dtype=torch.bfloat16) for _ in range(3))

    def products(self) -> None:
        for _ in range(self.sizes.products):
            torch.mm(self.a, self.b, out=self.c)

    def turn(self, averager: WeightAverager | None) -> Turn:
        """Some updates, each captured by `averager`, if there is one."""
        device, marks = self.device, []
        device.synchronize()
        self.products()  # work ahead, so that the device never waits for the host
        for _ in range(self.sizes.updates):
            before = device.mark()
            self.products()
            stepping = device.mark()
            self.optimizer.step()
            stepped = device.mark()
            if averager is not None:
                averager.capture()
            marks.append((before, stepping, stepped, device.mark()))
        device.synchronize()
        return Turn.of(device, marks)


@dataclass(frozen=True, kw_only=True)
class Turn:
    """Seconds of the compute stream an update: all of it, the optimizer's step, and the capture."""

    update: float
    step: float
    capture: float

    @classmethod
    def of(cls, device: Device, marks: list[tuple[Mark, Mark, Mark, Mark]]) -> Turn:
        n = len(marks)
        return cls(
            update=device.between(marks[0][0], marks[-1][3]) / n,
            # The first step of a turn follows no capture.
            step=sum(device.between(stepping, stepped) for _, stepping, stepped, _ in marks[1:]) / (n - 1),
            capture=sum(device.between(stepped, captured) for _, _, stepped, captured in marks) / n,
        )


def stall(device: Device, sizes: Sizes) -> list[Found]:
    """A capture every update. On the device it is a copy in the compute stream; on the host the next step waits."""
    work = Work(device, sizes)
    averagers: dict[str, WeightAverager | None] = {"none": None}
    for placement in ("device", "host"):
        averagers[placement] = filled(work.model, work.optimizer, placement=placement, every=1, window=WINDOW)
    turns = alternate({name: _turn(work, averager) for name, averager in averagers.items()}, rounds=sizes.rounds)
    copies = _copies(device, work.model, rounds=sizes.rounds)

    found: list[Found] = []
    alone = turns["none"]
    for placement, limit in (("device", "on the device"), ("host", "to the host")):
        # The step waits for a copy that is not done; the compute stream has nothing else to wait for.
        stalls = [
            max(0.0, turn.capture - bare.capture + turn.step - bare.step)
            for turn, bare in zip(turns[placement], alone, strict=True)
        ]
        spread, copy = Spread.of(stalls), Spread.of(copies[limit])
        found += [
            Record(
                name=f"gpu/stall/{placement}",
                question=f"snapshots on the {placement}: stall of the compute stream a capture / a copy of the weights "
                f"{limit}",
                ratio=over(stalls, copies[limit]),
                target=1.1 if placement == "device" else 0.1,
                n=sizes.rounds,
                parts={"stall": spread, f"copy {limit}": copy},
                note=f"{milliseconds(spread)} / {milliseconds(copy)}, an update of "
                f"{milliseconds(Spread.of([turn.update for turn in alone]))}",
            ),
            Record(
                name=f"gpu/stall/{placement}/update",
                question=f"snapshots on the {placement}: an update of matrix products with a capture / without",
                ratio=over([turn.update for turn in turns[placement]], [turn.update for turn in alone]),
                target=None,
                n=sizes.rounds,
                parts={
                    "with": Spread.of([turn.update for turn in turns[placement]]),
                    "without": Spread.of([turn.update for turn in alone]),
                },
            ),
        ]
        averager = averagers[placement]
        assert averager is not None
        found.append(_no_host_sync(device, work, averager, placement))
    return found


def _turn(work: Work, averager: WeightAverager | None) -> Callable[[], Turn]:
    return lambda: work.turn(averager)


def _no_host_sync(device: Device, work: Work, averager: WeightAverager, placement: str) -> Check:
    """A capture and the step after it return while the device still works on what came before them."""
    error = ""
    busy: bool | None = False
    device.synchronize()
    work.products()
    try:
        with device.no_host_sync():
            averager.capture()
            work.optimizer.step()
        busy = device.busy()
    except RuntimeError as synchronized:
        error = str(synchronized).splitlines()[0]
    device.synchronize()
    claim = f"snapshots on the {placement}: a capture and the next step never make the host wait"
    detail = error or {True: "device still busy", False: "device idle: the host waited", None: "no device"}[busy]
    return Check(name=f"gpu/sync/{placement}", claim=claim, held=not error and busy is not False, detail=detail)


def _copies(device: Device, model: nn.Module, *, rounds: int) -> dict[str, list[float]]:
    """Seconds of a copy of the weights to preallocated memory beside them, and to pinned host memory."""
    weights = [parameter.detach() for parameter in model.parameters()]
    beside = [torch.randn_like(weight) for weight in weights]
    flat = torch.cat([weight.view(-1) for weight in weights])
    pinned = torch.randn(flat.shape).pin_memory() if device.cuda else torch.randn(flat.shape)
    with torch.no_grad():
        return interleave(
            {
                "on the device": lambda: torch._foreach_copy_(beside, weights),
                "to the host": lambda: pinned.copy_(flat, non_blocking=True),
            },
            rounds=rounds,
            synchronize=device.synchronize,
        )


def filled(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    placement: str = "device",
    averages: Mapping[str, Average] | None = None,
    **window: Any,
) -> WeightAverager:
    """An averager in its steady state: the window full, and one more."""
    averager = WeightAverager(model, optimizer, mode="evaluate", placement=placement, averages=averages, **window)
    every = window.get("every", 1)
    for capture in range(1, WINDOW + 2):
        averager.capture(capture * every)
    return averager
