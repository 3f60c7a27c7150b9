"""The loss of a causal language model on fixed sequences."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional


def token_loss(model: nn.Module, sequences: Tensor) -> Tensor:
    """Mean cross-entropy of each next token, in nats: a scalar.

    sequences  int64 [batch, context + 1]; inputs are all but the last token, targets all but the first
    """
    logits = model(input_ids=sequences[:, :-1], use_cache=False).logits
    return functional.cross_entropy(logits.flatten(0, 1).float(), sequences[:, 1:].flatten())


@torch.no_grad()
def evaluate(
    model: nn.Module,
    sequences: NDArray[np.int64],
    *,
    batch: int,
    autocast: AbstractContextManager[object] | None = None,
    share: tuple[int, int] = (0, 1),
    total: Callable[[float], float] = float,
) -> float:
    """Mean loss a token over `sequences` [n, context + 1], in nats, summed in float64. Leaves the model's mode.

    share  this process's number and how many there are: each takes every so-many-th batch
    total  the sum over them of a float
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    rank, world = share
    summed = 0.0
    try:
        with autocast or nullcontext():
            for first in range(0, len(sequences), batch * world):
                # A sharded model's forward needs every process, so one without a batch left repeats the first.
                start = first + rank * batch
                own = sequences[start : start + batch]
                part = torch.from_numpy(own if len(own) else sequences[:batch]).to(device)
                summed += float(token_loss(model, part)) * len(own)
    finally:
        model.train(was_training)
    return total(summed) / len(sequences)
