"""The text that averages along a run are evaluated on, and the loss of weights on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lawa.data.store import open_store
from lawa.errors import LawaError, UsageError
from lawa.evaluation.model import make_model, read_shape
from lawa.evaluation.score import score
from lawa.evaluation.text import Text, of_files, of_store
from lawa.trajectories.follow_text import Evaluation, is_store

_CONTEXT = 2048  # tokens, where nobody says fewer


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
        self._shape = read_shape(folder)
        if self._text is None:
            self._text = self._open(folder)

    def __call__(self, weights: Mapping[str, Tensor], label: str) -> dict[str, Any]:
        """loss (nats a token), perplexity, bits_per_byte, tokens, bytes; None where it is not finite or not known."""
        settings, text = self.settings, self._text
        assert text is not None
        model = make_model(
            self._shape, weights, label=label, dtype=getattr(torch, settings.dtype), device=settings.device
        )
        self.model = {"architecture": self._shape.model_type, "parameters": model.num_parameters()}
        return asdict(score(model, text, batch=settings.batch))

    def _open(self, folder: Path) -> Text:
        settings = self.settings
        most = getattr(self._shape, "max_position_embeddings", None) or _CONTEXT
        context = settings.context or min(most, _CONTEXT)
        if context > most:
            raise UsageError(f"--context {context} is more than the {most} tokens that the model takes")
        name = Path(settings.text).name
        if is_store(settings.text):
            return of_store(open_store(settings.text), context, settings.limit, name=name)
        return of_files([settings.text], self._load_tokenizer(folder), context, settings.limit, name=name)

    def _load_tokenizer(self, folder: Path) -> PreTrainedTokenizerBase:
        failed = None
        for where in (str(folder), self._tokenizer):
            if where is not None:
                try:
                    return AutoTokenizer.from_pretrained(where, trust_remote_code=False)
                except Exception as error:  # OSError, ValueError, KeyError, tokenizers' own
                    failed = str(error).strip().partition("\n")[0]
        tried = " and ".join(dict.fromkeys(filter(None, (str(folder), self._tokenizer))))
        raise LawaError(f"no tokenizer can be had from {tried} ({failed}); give a token store as --text")
