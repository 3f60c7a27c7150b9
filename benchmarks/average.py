"""What the average of a window costs, against the memory traffic it cannot do without.

    python benchmarks/average.py [--quick] [--output FILE]

The limit: each of k snapshots is read once and the average is written once, k + 1 moves of n elements, at the
bandwidth of a copy (a read and a write, two moves) measured in the same run: (k + 1)/2 copies.

Compared with it: the real path (Windows.average over the slots of a full window of GPT-2 small, with the
memory for the result), the arithmetic alone (average_into, on one long tensor) at every block size, and two
plain ways to write it. Every block size must give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from unittest import mock

import torch
from torch import Tensor

import models
from lawa import Window
from lawa.averaging import kernels
from lawa.averaging.coefficients import coefficients
from lawa.averaging.layout import Layout
from lawa.averaging.mean import average_into, block_size
from lawa.averaging.parameters import ModelTensors
from lawa.averaging.stores import DeviceStore
from lawa.averaging.window import Windows
from measure import QUICK_ROUNDS, ROUNDS, Check, Found, Record, Spread, interleave, milliseconds, over, run

TARGET = 1.2
WINDOW = 10
BLOCKS = [1 << power for power in range(17, 24)]


def measure(quick: bool) -> list[Found]:
    rounds = QUICK_ROUNDS if quick else ROUNDS
    elements = 300_000 if quick else 60_000_000
    return [
        *real_path(quick, rounds=rounds),
        *arithmetic("average", elements, torch.float32, rounds=rounds),
        *arithmetic("average", elements, torch.bfloat16, rounds=rounds),
    ]


def real_path(quick: bool, *, rounds: int) -> list[Found]:
    """Windows.average over the slots of a full window, as evaluation and replacement call it."""
    model = models.tiny() if quick else models.gpt2_small()
    layout = Layout(ModelTensors(model).trained)
    window = Window(WINDOW, every=1)
    windows = Windows({"lawa": window}, layout, DeviceStore(layout))
    for t in range(1, WINDOW + 1):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01)
        windows.capture(t)
    source, target = torch.randn(layout[0].numel), torch.randn(layout[0].numel)
    snapshots = [held.snapshot[0] for held in windows.rings["lawa"].held]
    seconds = interleave(
        {
            "copy": lambda: target.copy_(source),
            "window": lambda: windows.average("lawa", dtype=torch.float32),
            "arithmetic": lambda: average_into(target, snapshots),
        },
        rounds=rounds,
    )
    name = f"window of {WINDOW} snapshots of {'a tiny model' if quick else 'GPT-2 small'}"
    return [
        _record("average/window/real-path", f"{name}: average with the memory for it", "window", seconds, None),
        _record("average/window/arithmetic", f"{name}: average into memory in use", "arithmetic", seconds, TARGET),
    ]


def arithmetic(
    prefix: str,
    elements: int,
    dtype: torch.dtype,
    *,
    rounds: int,
    device: torch.device | None = None,
    sizes: Sequence[int] = BLOCKS,
    synchronize: Callable[[], object] | None = None,
) -> list[Found]:
    """average_into on one long tensor, and other ways to do the same.

    prefix  of the records' names
    sizes   elements a block, each of them measured
    """
    snapshots = [torch.randn(elements, device=device).to(dtype) for _ in range(WINDOW)]
    source, copied, out = (torch.randn(elements, device=device).to(dtype) for _ in range(3))
    linear = coefficients("linear", WINDOW)

    def blocks(size: int) -> Callable[[], object]:
        return lambda: by_torch(out, snapshots, size)

    contenders: dict[str, Callable[[], object]] = {
        "copy": lambda: copied.copy_(source),
        "uniform": lambda: average_into(out, snapshots),
        "weighted": lambda: average_into(out, snapshots, linear),
        **{f"block {size}": blocks(size) for size in sizes},
    }
    if dtype == torch.float32:
        contenders |= {
            "foreach": lambda: whole_tensors(out, snapshots),
            "stack": lambda: torch.stack(snapshots).mean(0),
        }
    seconds = interleave(contenders, rounds=rounds, synchronize=synchronize)

    short = str(dtype).removeprefix("torch.")
    path = f"{prefix}/{short}/{elements // 1_000_000}M"
    name = f"{WINDOW} × {elements / 1e6:g}M {short}"
    target = TARGET if dtype == torch.float32 else None
    found: list[Found] = [
        _record(f"{path}/uniform", f"{name}: uniform", "uniform", seconds, target),
        _record(f"{path}/weighted", f"{name}: weighted", "weighted", seconds, None),
    ]
    for size in sizes:
        ours = " (ours)" if size == block_size(out.device) else ""
        question = f"{name}: uniform by torch operations, blocks of 2^{size.bit_length() - 1}{ours}"
        found.append(_record(f"{path}/block-{size}", question, f"block {size}", seconds, None))
    if dtype == torch.float32:
        question = f"{name}: plain, whole tensors, three moves a snapshot"
        found.append(_record(f"{path}/foreach", question, "foreach", seconds, None))
        found.append(_record(f"{path}/stack", f"{name}: plain, torch.stack(…).mean(0)", "stack", seconds, None))
    return [*found, _same_bits(f"{path}/bits", name, out, snapshots, linear, sizes)]


def by_torch(out: Tensor, snapshots: Sequence[Tensor], block: int, weights: Sequence[float] | None = None) -> None:
    """The average without the compiled loop, as it is made where that was not built."""
    with mock.patch.object(kernels, "_library", None):
        average_into(out, snapshots, weights, block=block)


@torch.no_grad()
def whole_tensors(out: Tensor, snapshots: Sequence[Tensor]) -> None:
    """The average as one would write it: the accumulator goes through memory for every snapshot."""
    torch._foreach_copy_([out], [snapshots[0]])
    for snapshot in snapshots[1:]:
        torch._foreach_add_([out], [snapshot])
    torch._foreach_mul_([out], 1 / len(snapshots))


def _same_bits(
    name: str, what: str, out: Tensor, snapshots: Sequence[Tensor], weights: Sequence[float], sizes: Sequence[int]
) -> Check:
    different = []
    for given in (None, weights):
        average_into(out, snapshots, given)
        ours = out.clone()
        for size in sizes:
            by_torch(out, snapshots, size, given)
            if not torch.equal(out, ours):
                different.append(size)
    detail = f"different: {different}" if different else ""
    return Check(
        name=name,
        claim=f"{what}: same bits compiled and by torch, at every block size",
        held=not different,
        detail=detail,
    )


def _record(name: str, question: str, what: str, seconds: dict[str, list[float]], target: float | None) -> Record:
    """The ratio to (k + 1)/2 copies."""
    measured, copy = Spread.of(seconds[what]), Spread.of(seconds["copy"])
    return Record(
        name=name,
        question=f"{question} / {WINDOW} reads and 1 write",
        ratio=over(seconds[what], seconds["copy"], times=(WINDOW + 1) / 2),
        target=target,
        n=len(measured.values),
        parts={what: measured, "copy": copy},
        note=f"{milliseconds(measured)}, a copy {milliseconds(copy)}",
    )


if __name__ == "__main__":
    run("average", __doc__ or "", measure)
