"""The text that averages along a run are evaluated on, and the loss of weights on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lawa.checkpoints.select import Found
from lawa.data import tokenizer as tokenizers
from lawa.errors import LawaError
from lawa.evaluation.asked import Asked
from lawa.evaluation.model import make_model
from lawa.evaluation.reading import Reading
from lawa.evaluation.score import score
from lawa.evaluation.text import Text
from lawa.trajectories.follow_text import Evaluation


class Evaluator:
    """Losses of one run's weights: `look` at a checkpoint's folder while it is there, then call it with weights.

    tokenizer  a folder or a name on the hub, for checkpoints without one; None: there is none
    """

    def __init__(self, settings: Evaluation, *, tokenizer: str | None) -> None:
        self.settings = settings
        self._tokenizer = tokenizer
        self._shape: Any = None
        self._text: Text | None = None
        self.model: dict[str, Any] = {}  # what a report says of it: architecture and parameters, tied ones once

    def look(self, folder: Path) -> None:
        """Read the model's configuration; of the first checkpoint its tokenizer, too, where the text needs one."""
        settings = self.settings
        here = Found(label=str(folder), step=None, path=folder)
        asked = Asked(
            inputs=[folder], texts=[settings.text], context=settings.context, limit=settings.limit,
            batch=settings.batch, dtype=settings.dtype, device=settings.device,
            tokenizer=None if self._tokenizer is None or _has_tokenizer(folder) else self._tokenizer,
        )  # fmt: skip
        reading = Reading(asked)
        self._shape = reading.shape(here)
        if self._text is None:
            [self._text] = reading.texts(here)

    def __call__(self, weights: Mapping[str, Tensor], label: str) -> dict[str, Any]:
        """loss (nats a token), perplexity, bits_per_byte, tokens, bytes; None where it is not finite or not known."""
        settings, text = self.settings, self._text
        assert text is not None
        model = make_model(
            self._shape, weights, label=label, dtype=getattr(torch, settings.dtype), device=settings.device
        )
        self.model = {"architecture": self._shape.model_type, "parameters": model.num_parameters()}
        return asdict(score(model, text, batch=settings.batch))


def _has_tokenizer(folder: Path) -> bool:
    try:
        tokenizers.load(folder)
    except LawaError:
        return False
    return True
