"""What a capture costs, against a copy of the same tensors, which is the least it can cost.

    python benchmarks/capture.py [--quick] [--output FILE]

Steady state: every window is full, every running average has its state. A capture of a window is a copy and
should cost no more than one. A running average must read its own state too, and is measured against the same
copy; so are torch's own averages.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import models
from lawa import EMA, RunningMean, WeightAverager
from measure import QUICK_ROUNDS, ROUNDS, Found, Record, Spread, interleave, milliseconds, over, run

TARGET = 1.1
WINDOW = 4  # a capture into a full window costs the same at any size; 2 GB of snapshots are enough


def measure(quick: bool) -> list[Found]:
    rounds = QUICK_ROUNDS if quick else ROUNDS
    if quick:
        return measure_model("tiny model", models.tiny(), target=TARGET, rounds=rounds)
    return [
        *measure_model("GPT-2 small", models.gpt2_small(), target=TARGET, rounds=rounds),
        # Here most of the time goes into starting operations: what an average of many small tensors pays.
        *measure_model("demo model", models.demo(), target=None, rounds=rounds),
    ]


def measure_model(name: str, model: nn.Module, *, target: float | None, rounds: int) -> list[Found]:
    weights = [parameter.detach() for parameter in model.parameters()]
    copies = [torch.randn_like(weight) for weight in weights]

    def ours(**settings: Any) -> Callable[[], object]:
        averager = WeightAverager(model, mode="evaluate", **settings)
        for _ in range(WINDOW + 1):
            averager.capture()
        return averager.capture

    def torchs(average: AveragedModel) -> Callable[[], object]:
        for _ in range(2):
            average.update_parameters(model)
        return lambda: average.update_parameters(model)

    questions = {
        "window": "capture into a full window",
        "ema": "capture of an EMA",
        "mean": "capture of a running mean",
        "torch-mean": "peer, torch's AveragedModel with its default mean",
        "torch-ema": "peer, torch's AveragedModel with get_ema_multi_avg_fn",
    }
    with torch.no_grad():
        seconds = interleave(
            {
                "copy": lambda: torch._foreach_copy_(copies, weights),
                "window": ours(every=1, window=WINDOW),
                "ema": ours(averages={"ema": EMA(0.999)}),
                "mean": ours(averages={"mean": RunningMean()}),
                "torch-mean": torchs(AveragedModel(model)),
                "torch-ema": torchs(AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))),
            },
            rounds=rounds,
        )
    copy = Spread.of(seconds["copy"])
    return [
        Record(
            name=f"capture/{name.replace(' ', '-').lower()}/{what}",
            question=f"{name} ({models.size(model)}): {question} / copy of the weights",
            ratio=over(seconds[what], seconds["copy"]),
            target=target if what == "window" else None,
            n=rounds,
            parts={what: Spread.of(seconds[what]), "copy": copy},
            note=f"{milliseconds(Spread.of(seconds[what]))} / {milliseconds(copy)}",
        )
        for what, question in questions.items()
    ]


if __name__ == "__main__":
    run("capture", __doc__ or "", measure)
