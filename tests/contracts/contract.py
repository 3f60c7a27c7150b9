"""What every way of putting the averager into a training loop has in common.

An adapter trains the same model on the same batches with the same settings; `expected` is the literal twin: a plain
loop that copies weights and computes means in numpy, and knows nothing of lawa. A new integration writes one Adapter
and adds it to adapters/; test_contract.py then holds for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

import twins
from lawa import WeightAverager
from lawa.averaging.layout import full, local
from lawa.averaging.matching import canonical

Weights = dict[str, np.ndarray]
LAST = 11
LR = 0.05


class Tiny(nn.Module):
    """A tied language model of 60 weights, which notes the weights that each batch of training sees.

    forward(tokens) returns {"loss": …}, as trainers like it; tokens are (batch, length).
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(8, 4)
        self.inner = nn.Linear(4, 4)
        self.head = nn.Linear(4, 8, bias=False)
        self.head.weight = self.embed.weight
        self.seen: list[Weights] = []
        self.read: Callable[[Any], Weights] = weights  # where forward cannot: what noted them before

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        if self.training:
            self.seen.append(self.read(self))
        logits = self.head(torch.tanh(self.inner(self.embed(tokens[:, :-1]))))
        return {"loss": nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())}


def batch(t: int) -> Tensor:
    """The tokens of update t, (4, 6)."""
    return torch.randint(0, 8, (4, 6), generator=torch.Generator().manual_seed(t))


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW at a constant learning rate: no schedule, no weight decay, no clipping."""
    return torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0)


def weights(model: nn.Module) -> Weights:
    """Of all ranks together where the model is sharded by DTensors.

    Of a copy: memory that numpy has seen cannot be resized any more, which FSDP2 does with its own.
    """
    return {canonical(name): twins.array(full(parameter).clone()) for name, parameter in model.named_parameters()}


def same(left: Weights, right: Weights) -> bool:
    return left.keys() == right.keys() and all(twins.same_bits(left[name], right[name]) for name in left)


@dataclass
class Run:
    """A model in training, and what an adapter leaves behind: a replacement that fell due at LAST is carried out."""

    model: Tiny
    averager: WeightAverager
    read: Callable[[nn.Module], Weights] = weights  # the model's whole weights

    def average(self, name: str | None = None) -> Weights:
        with self.averager.averaged(name) as model:
            return self.read(model)

    def snapshots(self) -> dict[int, Weights]:
        """What the windows hold, by update."""
        return {
            int(step): {name: twins.array(full(tensor)) for name, tensor in snapshot.items()}
            for step, snapshot in self.averager.state_dict()["snapshots"].items()
        }


During = Callable[[int, Run], None]


class Adapter(Protocol):
    """One way of training."""

    def __call__(
        self, settings: dict[str, Any], folder: Path, *,
        save_at: int | None = None, resume: bool = False, during: During | None = None,
    ) -> Run:  # fmt: skip
        """Train a fresh Tiny from update 1 to LAST on batch(1) … batch(LAST).

        settings  of WeightAverager
        save_at   after this update, save all that a resume needs in `folder`, when this trainer saves; and go on
        resume    start from what is in `folder` instead of from update 1
        during    called after every update with its number, when this trainer evaluates
        """
        ...


def poke(run: Run, name: str, value: float) -> None:
    """Write into the first element of a parameter (sharded: of each rank's shard), as a step of training would."""
    tensors = run.averager._tensors
    for entry in tensors.trained:
        own = local(entry.current())
        if entry.name.partition("[")[0] == name and own.numel():
            own.view(-1)[0] = value
    tensors.written()


@dataclass
class Expected:
    """seen[t − 1] is what batch t must see, captured[t] what the capture at t must hold, final what is left at LAST."""

    seen: list[Weights] = field(default_factory=list)
    captured: dict[int, Weights] = field(default_factory=dict)
    replaced: list[int] = field(default_factory=list)
    final: Weights = field(default_factory=dict)


def expected(
    *, every: int, window: int, start: int = 1, stop: int | None = None, mode: str, after_replace: str = "slide",
    replace_every: int | None = None, replace_until: int | None = None, strength: float = 1,
) -> Expected:  # fmt: skip
    """The method by hand, for one uniform window."""
    model, run = Tiny(), Expected()
    optimizer = optimizer_of(model)
    captures = twins.captures(every, start, stop, LAST)
    replacements = dict(
        twins.replacements(
            captures, LAST, window=window, min_window=window, replace_every=replace_every or every,
            replace_until=replace_until, clear=after_replace == "clear",
        )
        if mode == "replace"
        else ()
    )  # fmt: skip
    for t in range(1, LAST + 1):
        model(batch(t))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        if t in captures:
            run.captured[t] = weights(model)
        if t in replacements:
            run.replaced.append(t)
            for name, parameter in model.named_parameters():
                mean = twins.uniform([run.captured[step][name] for step in replacements[t]])
                theta = run.captured[t][name]
                new = mean if strength == 1 else theta + np.float32(strength) * (mean - theta)
                parameter.data.copy_(torch.from_numpy(new))
    run.seen, run.final = model.seen, weights(model)
    return run
