"""What ours and the peers' averages do with bf16 weights (a part of peers.py).

Weights that are drawn anew for each update, and the error of the average, as the model would have it, beside that of
the exact one rounded once; and an EMA of 0.9999 after weights that moved once and then stayed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

import models
from averagers import OURS, WINDOW, Averager
from measure import Check, Found, Record, Spread

SLOW = 0.9999


def exactness(averagers: Mapping[str, Averager], *, draws: int) -> list[Found]:
    """The error of every average of weights drawn anew, N(1, 0.1²), for each update; an EMA's β is 0.99."""
    found: list[Found] = []
    wrong = []
    for one, averager in averagers.items():
        error, _ = _errors(averager, torch.float32, draws)
        if error > 1e-6:
            wrong.append(f"{one} {error:.1e}")
        error, least = _errors(averager, torch.bfloat16, draws)
        found.append(
            Record(
                name=f"peers/bf16/error/{one}",
                question=f"bf16, {draws} updates: rms error of {averager.name} / of the exact average rounded once",
                ratio=Spread.of([error / least]),
                target=1.01 if one in OURS else None,
                n=1,
                parts={"rms error": Spread.of([error]), "rms error of one rounding": Spread.of([least])},
                note=f"{error:.1e} / {least:.1e}",
            )
        )
    claim = "of fp32 weights each gives the average that it is measured for, to an rms error of 1e-6"
    return [*found, Check(name="peers/exact", claim=claim, held=not wrong, detail=", ".join(wrong))]


def _errors(averager: Averager, dtype: torch.dtype, draws: int) -> tuple[float, float]:
    """Rms errors against float64: the average's, and that of the exact average rounded once."""
    model, beta = models.tiny().to(dtype), 0.99
    made, exact = None, torch.zeros(())
    window: list[Tensor] = []
    for t, theta in enumerate(_wander(model, draws), start=1):
        made = made or averager.make(model, beta)
        made.update()
        if averager.kind == "ema":
            exact = theta if t == 1 else beta * exact + (1 - beta) * theta
        elif averager.kind == "mean":
            exact = exact + theta
        else:
            window = [*window[1 - WINDOW :], theta]
    assert made is not None
    if averager.kind != "ema":
        exact = exact / draws if averager.kind == "mean" else torch.stack(window).mean(0)
    average = torch.cat([tensor.flatten() for tensor in made.average()]).to(dtype).double()
    return _rms(average - exact), _rms(exact.to(dtype).double() - exact)


def _wander(model: nn.Module, draws: int) -> Iterator[Tensor]:
    """Draw the model's weights anew again and again; each time, all of them in float64."""
    generator = torch.Generator().manual_seed(1)
    parameters = list(model.parameters())
    for _ in range(draws):
        with torch.no_grad():
            for parameter in parameters:
                parameter.copy_(1 + 0.1 * torch.randn(parameter.shape, generator=generator))
        yield torch.cat([parameter.detach().flatten() for parameter in parameters]).double()


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def motion(averagers: Mapping[str, Averager], *, updates: int) -> list[Found]:
    """Weights of 1.0 become 1.1 and stay there: how far the EMA has followed. In bf16 no step of it is large enough."""
    found: list[Found] = []
    for one, averager in averagers.items():
        if averager.kind != "ema":
            continue
        model = models.tiny().bfloat16()
        _fill(model, 1.0)
        made = averager.make(model, SLOW)
        made.update()
        theta = _fill(model, 1.1)
        for _ in range(updates):
            made.update()
        moved = float(torch.cat([tensor.flatten() for tensor in made.average()]).double().mean()) - 1
        exact = (theta - 1) * (1 - SLOW**updates)
        found.append(
            Record(
                name=f"peers/bf16/motion/{one}",
                question=f"bf16, {updates} updates from 1.0 to 1.1, β = {SLOW}: way of {averager.name} / of the exact "
                "EMA",
                ratio=Spread.of([abs(moved) / exact]),
                target=None,
                n=1,
                parts={"moved": Spread.of([abs(moved)]), "exact": Spread.of([exact])},
                note=f"{moved:.4f} / {exact:.4f}",
            )
        )
    ours = next(one for one in found if one.name.endswith("/ema"))
    assert isinstance(ours, Record)
    claim = f"our EMA of bf16 weights moves at β = {SLOW}"
    return [*found, Check(name="peers/bf16/moves", claim=claim, held=ours.ratio.median > 0)]


@torch.no_grad()
def _fill(model: nn.Module, value: float) -> float:
    """Set every weight to `value`, as its dtype has it."""
    for parameter in model.parameters():
        parameter.fill_(value)
    return float(next(model.parameters()).flatten()[0])
