"""Two things a GPU can get wrong without any error: a snapshot torn by the next step, and other bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from gpu_device import Device
from lawa import EMA, RunningMean, WeightAverager, Window
from lawa.averaging.coefficients import coefficients
from lawa.averaging.layout import Layout, Snapshot, read
from lawa.averaging.mean import average_into
from lawa.averaging.placement import make_store
from lawa.averaging.stores import SnapshotStore
from measure import Check, Found

WINDOW = 3
_SLEEP = 50_000_000  # device cycles: some 25 ms, in which a step would have changed every weight


class Fill(torch.optim.Optimizer):
    """Its t-th step sets every weight to t, in place: a snapshot of update t that holds anything else was torn."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__(parameters, {})
        self.t = 0

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        self.t += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.fill_(float(self.t))


def tearing(device: Device, *, elements: int) -> list[Found]:
    """Snapshots on the host while the next step follows at once, with and without what protects them.

    elements  of each of four tensors
    """
    found: list[Found] = []
    torn, checked = _torn(device, elements=elements, protected=True)
    claim = f"tearing: with the optimizer's hook, {checked} host snapshots of changing weights are whole"
    found.append(Check(name="gpu/tearing/protected", claim=claim, held=torn == 0, detail=f"torn: {torn}"))
    torn, checked = _torn(device, elements=elements, protected=False)
    claim = f"tearing: without it some of {checked} are torn, so the check above can fail"
    found.append(Check(name="gpu/tearing/unprotected", claim=claim, held=torn > 0, detail=f"torn: {torn}"))
    return found


def _torn(device: Device, *, elements: int, protected: bool) -> tuple[int, int]:
    """How many snapshots were not θ_t throughout, of how many."""
    model = nn.ParameterList([nn.Parameter(torch.zeros(elements, device=device.torch)) for _ in range(4)])
    optimizer = Fill(list(model))
    stores: list[SnapshotStore] = []

    def make(placement: str, layout: Layout, **settings: Any) -> SnapshotStore:
        store = make_store(placement, layout, **settings)
        stores.append(store if device.cuda else _Late(layout, store))
        return stores[-1]

    with patch("lawa.averaging.averager.make_store", make):
        averager = WeightAverager(model, optimizer, mode="evaluate", placement="host", every=1, window=WINDOW)
    if not protected:
        assert averager._protections
        averager._protections.pop().remove()
    torn = checked = 0
    for _ in range(4):
        for _ in range(WINDOW):
            optimizer.step()
            _delay_copies(stores[0])
            averager.capture(optimizer.t)
        optimizer.step()  # threatens the last snapshot too
        device.synchronize()
        for step, snapshot in averager.state_dict()["snapshots"].items():
            checked += 1
            torn += not all(bool((tensor == float(step)).all()) for tensor in snapshot.values())
    return torn, checked


class _Late:
    """What a side stream does, for a dry run: a copy is carried out when somebody waits for it."""

    def __init__(self, layout: Layout, store: SnapshotStore) -> None:
        self.layout = layout
        self.store = store
        self.waiting: list[Snapshot] = []

    def capture(self, step: int) -> Snapshot:
        self.waiting.append(self.store.empty(step))
        return self.waiting[-1]

    def protect(self) -> None:
        while self.waiting:
            read(zip(self.layout, self.waiting.pop(0), strict=True))

    settle = protect

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


def _delay_copies(store: SnapshotStore) -> None:
    """Put a sleep before the next copy, on the stream that copies: the copy then is late, however fast the bus."""
    for stream in getattr(store, "_streams", {}).values():
        with torch.cuda.stream(stream):
            torch.cuda._sleep(_SLEEP)


def bits(device: Device, *, elements: int) -> list[Found]:
    """The same snapshots averaged on the CPU and on the device."""
    different: list[str] = []
    averaged = 0
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        snapshots = [_awkward(elements, dtype, seed) for seed in range(5)]
        on_device = [snapshot.to(device.torch) for snapshot in snapshots]
        for name in ("uniform", "linear", "one_minus_sqrt"):
            weights = None if name == "uniform" else coefficients(name, len(snapshots))
            for wide in (torch.float32, torch.float64):
                if torch.promote_types(dtype, wide) != wide:
                    continue
                here, there = torch.empty(elements, dtype=dtype), torch.empty(elements, dtype=dtype).to(device.torch)
                average_into(here, snapshots, weights, dtype=wide)
                average_into(there, on_device, weights, dtype=wide, block=elements // 3 + 1)
                averaged += 1
                if not same_bits(here, there.cpu()):
                    different.append(f"{dtype} {name} in {wide}")
    claim = f"bits: {averaged} averages of awkward numbers are equal on CPU and device"
    found: list[Found] = [Check(name="gpu/bits/windows", claim=claim, held=not different, detail=", ".join(different))]

    here, there = (torch.empty(elements) for _ in range(2))
    snapshots = [_awkward(elements, torch.float32, seed) for seed in range(5)]
    average_into(here, snapshots)
    average_into(there, snapshots[::-1])
    claim = "bits: another order of the same snapshots gives others, so the check above can fail"
    found.append(Check(name="gpu/bits/order", claim=claim, held=not same_bits(here, there)))
    return [*found, _loop_bits(device, elements=elements)]


def _loop_bits(device: Device, *, elements: int) -> Check:
    """A window, an EMA and a running mean through the averager, on the CPU, the device, and device with host slots."""
    places = [("cpu", "device"), (device.torch, "device"), (device.torch, "host")]
    results: list[dict[str, Tensor]] = []
    for where, placement in places:
        parameter = nn.Parameter(torch.zeros(elements, device=where))
        averager = WeightAverager(
            nn.ParameterList([parameter]),
            torch.optim.SGD([parameter]),
            mode="evaluate",
            placement=placement,
            averages={"window": Window(3, every=2), "ema": EMA(0.9), "mean": RunningMean()},
        )
        for t in range(1, 11):
            with torch.no_grad():
                parameter.copy_(_awkward(elements, torch.float32, t))
            averager.capture(t)
            device.synchronize()  # the copy above is no optimizer's step: nothing else protects the snapshot
        result = {}
        for name in averager.averages:
            with averager.averaged(name):
                result[name] = parameter.detach().cpu().clone()
        results.append(result)
    different = [
        f"{name} ({place[1]})"
        for place, result in zip(places, results, strict=True)
        for name, value in result.items()
        if not same_bits(value, results[0][name])
    ]
    claim = (
        "bits: window, EMA and running mean of the averager are equal on CPU, device, and device with host snapshots"
    )
    return Check(name="gpu/bits/averager", claim=claim, held=not different, detail=", ".join(different))


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Also of signed zeros, which compare equal as numbers."""
    return torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def _awkward(elements: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Normal numbers of many sizes, with zeros of both signs and subnormal numbers of the dtype among them."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(elements, generator=generator, dtype=torch.float64)
    values *= torch.exp2(torch.randint(-12, 5, (elements,), generator=generator).double())
    values[0::7] = -0.0
    values[3::7] = 0.0
    values[5::7] *= torch.finfo(dtype).tiny
    return values.to(dtype)
