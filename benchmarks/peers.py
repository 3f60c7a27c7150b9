"""Ours beside the peers' averages of one model: cost of an update, memory, and what they do with bf16 weights.

    python benchmarks/peers.py [--quick] [--output FILE]        (needs the extras bench, lightning and trl)

Update: all of them follow the same fp32 model in turn, every update. The target of ours is the fastest peer's time in
the same round; which peer that is, the medians say. What each does in an update is in its row.

Every 100: a window of 10 against a training step of the same model (forward, backward, AdamW) on one sequence, the
smallest batch there is: a larger one makes the share smaller.

Memory: each in a process of its own. Held is what its tensors take, peak how far the process grew above the model
while the average was made and updated (Linux). Looking at one of our averages takes two more copies while it lasts.

bf16: see peers_bf16.py.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import models
from averagers import ALL, OURS, PEERS, WINDOW, Averager
from lawa import WeightAverager
from measure import QUICK_ROUNDS, ROUNDS, Found, Record, Spread, interleave, milliseconds, number, over, run
from peers_bf16 import exactness, motion

BETA = 0.999
EVERY = 100
TARGET_SHARE = 0.002


def measure(quick: bool) -> list[Found]:
    model, name = (models.tiny(), "a tiny model") if quick else (models.gpt2_small(), "GPT-2 small")
    name = f"{name} ({models.size(model)})"
    rounds = QUICK_ROUNDS if quick else ROUNDS
    found: list[Found] = []
    found += share(name, model, context=32 if quick else 1024, rounds=rounds)
    found += updates(name, model, rounds=rounds)
    found += memory(name, quick=quick)
    found += exactness(ALL, draws=20 if quick else 1000)
    found += motion(ALL, updates=2000 if quick else 10_000)
    return found


# ---- the cost of an update


def updates(name: str, model: nn.Module, *, rounds: int) -> list[Found]:
    """Every average in its steady state, on the same weights."""
    weights = [parameter.detach() for parameter in model.parameters()]
    copies = [torch.randn_like(weight) for weight in weights]
    contenders: dict[str, Callable[[], object]] = {"copy": lambda: torch._foreach_copy_(copies, weights)}
    for one, averager in ALL.items():
        contenders[one] = averager.make(model, BETA).update
        for _ in range(WINDOW + 1 if averager.kind == "window" else 2):
            contenders[one]()
    with torch.no_grad():
        seconds = interleave(contenders, rounds=rounds)
    copy = Spread.of(seconds["copy"])
    fastest = min(PEERS, key=lambda peer: Spread.of(seconds[peer]).median)
    found: list[Found] = []
    for one in OURS:
        ours, peer = Spread.of(seconds[one]), Spread.of(seconds[fastest])
        found.append(
            Record(
                name=f"peers/update/{one}/fastest",
                question=f"{name}: {OURS[one].name} / the fastest peer, {PEERS[fastest].name}",
                ratio=over(seconds[one], seconds[fastest]),
                target=1.0,
                n=rounds,
                parts={one: ours, fastest: peer},
                note=f"{milliseconds(ours)} / {milliseconds(peer)}",
            )
        )
    for one, averager in ALL.items():
        its = Spread.of(seconds[one])
        found.append(
            Record(
                name=f"peers/update/{one}",
                question=f"{name}: {averager.name} ({averager.does}) / copy of the weights",
                ratio=over(seconds[one], seconds["copy"]),
                target=None,
                n=rounds,
                parts={one: its, "copy": copy},
                note=f"{milliseconds(its)} / {milliseconds(copy)}",
            )
        )
    return found


def share(name: str, model: nn.Module, *, context: int, rounds: int) -> list[Found]:
    """A window of 10 every 100 updates, in seconds of training steps; and the call of an update that is not due."""
    due = WeightAverager(model, mode="evaluate", every=EVERY, window=WINDOW)
    idle = WeightAverager(model, mode="evaluate", every=10**9, window=1)
    for _ in range(EVERY * WINDOW):
        due.update()
    train = step(model, context)

    def hundred() -> None:
        for _ in range(EVERY):
            due.update()

    seconds = interleave({"step": train, "hundred": hundred, "idle": idle.update}, rounds=rounds, warmup=1)
    taken = Spread.of(seconds["step"])
    what = {
        "hundred": (f"Window({WINDOW}, every={EVERY}): {EVERY} updates / {EVERY} training steps", EVERY),
        "idle": (f"Window({WINDOW}, every={EVERY}): an update that is not due / a training step", 1),
    }
    return [
        Record(
            name=f"peers/every-{EVERY}/{one}",
            question=f"{name}: our {question} of 1 × {context} tokens",
            ratio=over(seconds[one], seconds["step"], times=steps),
            unit="%",
            target=TARGET_SHARE,
            n=rounds,
            parts={one: Spread.of(seconds[one]), "step": taken},
            note=f"{milliseconds(Spread.of(seconds[one]))}, a step {milliseconds(taken)}",
        )
        for one, (question, steps) in what.items()
    ]


def step(model: nn.Module, context: int) -> Callable[[], object]:
    """A training step: forward, backward, AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    tokens = torch.randint(0, 100, (1, context + 1))

    def train() -> None:
        logits = model(input_ids=tokens[:, :-1]).logits
        cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return train


# ---- memory


def memory(name: str, *, quick: bool) -> list[Found]:
    found: list[Found] = []
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as processes:
        for one in ("window", "torch-ema") if quick else ALL:
            weights, held, grown = processes.submit(memory_of, one, quick).result()
            found.append(
                Record(
                    name=f"peers/memory/{one}",
                    question=f"{name}: memory of {ALL[one].name} / the weights",
                    ratio=Spread.of([held / weights]),
                    target=None,
                    n=1,
                    parts={
                        "weights, bytes": Spread.of([weights]),
                        "held, bytes": Spread.of([held]),
                        "peak growth, bytes": Spread.of([grown]),
                    },
                    note=f"at its peak {number(grown / weights, '×')}",
                )
            )
    return found


def memory_of(one: str, quick: bool) -> tuple[int, int, int]:
    """Bytes of the model's weights, of the tensors that the average holds, and of the process's growth at its peak."""
    averager = ALL[one]
    _used(averager, models.tiny())  # imports, and what torch makes once
    model = models.tiny() if quick else models.gpt2_small()
    weights = sum(parameter.nbytes for parameter in model.parameters())
    before, resident = _held(), _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    made = _used(averager, model)
    peak = _status("VmHWM")
    held = _held() - before
    del made
    return weights, held, max(0, peak - resident)


def _used(averager: Averager, model: nn.Module) -> object:
    made = averager.make(model, BETA)
    for _ in range(WINDOW + 1):
        made.update()
    return made


def _held() -> int:
    """Bytes of all tensors, each storage once."""
    gc.collect()
    found = [one for one in gc.get_objects() if type(one) in (Tensor, nn.Parameter) and one.layout == torch.strided]
    storages = {storage.data_ptr(): storage.nbytes() for storage in map(Tensor.untyped_storage, found)}
    return sum(storages.values())


def _status(field: str) -> int:
    """Bytes, of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    run("peers", __doc__ or "", measure)
