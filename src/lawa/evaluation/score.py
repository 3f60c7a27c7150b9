"""How well a model predicts a text: loss, perplexity, bits per byte."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from lawa.errors import LawaError
from lawa.evaluation.text import Text

BATCH = 8  # sequences


@dataclass(frozen=True, kw_only=True)
class Score:
    """
    loss           nats a predicted token, mean
    perplexity     exp(loss)
    bits_per_byte  (L_T/L_B) · loss/ln 2: all nats as bits, over the bytes of the text; it compares models whose
                   tokenizers differ. Source: Gao et al., The Pile (arXiv 2101.00027), section 3.1
    tokens, bytes  L_T and L_B: predicted tokens (ends of text are predicted, too), and the bytes that they stand for

    What is not finite, or needs bytes that are not known, is None.
    """

    loss: float | None
    perplexity: float | None
    bits_per_byte: float | None
    tokens: int
    bytes: int | None


def score(
    model: nn.Module, text: Text, *, batch: int = BATCH, autocast: AbstractContextManager[object] | None = None
) -> Score:
    """The score of `model`, where it is, on `text`; `batch` sequences at a time. Leaves the model's mode.

    The loss of a token is computed in fp32, and summed in float64. Of logits those of one batch exist at a time, and
    one copy of those of a sequence.
    """
    _check_vocabulary(model, text)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), autocast or nullcontext():
            nats = math.fsum(_nats(model, part) for part in _parts(text, batch))
    finally:
        model.train(was_training)
    return of_nats(nats, text.tokens, text.nbytes)


def of_nats(nats: float, tokens: int, nbytes: float | None) -> Score:
    """The score of `nats` in all, for so many predicted tokens that stand for so many bytes."""
    loss = nats / tokens
    return Score(
        loss=_finite(loss),
        perplexity=_finite(math.exp(loss) if loss < 700 else math.inf),
        bits_per_byte=_finite(nats / math.log(2) / nbytes) if nbytes else None,
        tokens=tokens,
        bytes=None if nbytes is None else round(nbytes),
    )


def _parts(text: Text, batch: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(text.sequences), batch):
        yield text.sequences[start : start + batch]
    if text.rest is not None:
        yield text.rest[None]


def _nats(model: nn.Module, sequences: NDArray[np.int64]) -> float:
    """Of all targets: each sequence's by itself, so that its logits alone are copied to fp32."""
    ids = torch.from_numpy(sequences).to(next(model.parameters()).device)
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    losses = [
        functional.cross_entropy(row.float(), targets, reduction="none")
        for row, targets in zip(logits, ids[:, 1:], strict=True)
    ]
    return float(torch.stack(losses).cpu().double().sum())


def _check_vocabulary(model: nn.Module, text: Text) -> None:
    rows = model.get_input_embeddings().weight.shape[0]  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    if text.highest >= rows:
        raise LawaError(
            f"{text.name} has the id {text.highest}, and the model's vocabulary has {rows}; evaluate it on text that "
            "is tokenized with its own tokenizer"
        )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
