"""What `lawa evaluate` is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from lawa.checkpoints.select import Selection
from lawa.data.batches import Batches
from lawa.errors import UsageError
from lawa.evaluation.score import BATCH
from lawa.offline.policy import Policy
from lawa.offline.windows import Windows

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is evaluated, on what, and how.

    inputs, selection   as `lawa average` takes them
    windows   averages of every window along the checkpoints (rolling); None: the checkpoints themselves. A window of
              one is the checkpoint itself
    texts     token stores, text and JSONL files, folders of them, each a text
    batches   (name, batches, updates) of texts in an order that is given
    tasks, include   of lm-eval, and folders with definitions
    context   tokens a sequence predicts; default: the model's positions, at most 2048
    batch     sequences, or requests, at a time
    limit     sequences of each text, and documents of each task
    fewshot   examples before each document of a task; default: as the task says
    dtype, device   of the model
    config, tokenizer   a folder, a file or a hub name, for checkpoints that have none beside them, or another
    accumulate, out_dtype, policy   of averages: see in_memory.average
    output    the folder of records; None keeps none
    """

    inputs: Sequence[str | Path]
    selection: Selection = field(default_factory=Selection)
    windows: Windows | None = None
    texts: Sequence[str | Path] = ()
    batches: Sequence[tuple[str, Batches, range]] = ()
    tasks: Sequence[str] = ()
    include: Sequence[str | Path] = ()
    context: int | None = None
    batch: int = BATCH
    limit: int | None = None
    fewshot: int | None = None
    dtype: str = "float32"
    device: str = "cpu"
    config: str | Path | None = None
    tokenizer: str | Path | None = None
    accumulate: str = "float32"
    out_dtype: str | None = None
    policy: Policy = field(default_factory=Policy)
    output: Path | None = None
    allow_duplicates: bool = False
    offline: bool = False

    def __post_init__(self) -> None:
        if not (self.texts or self.batches or self.tasks):
            raise UsageError("nothing to evaluate on was named; give --text, --batches or --tasks")
        if self.windows is not None and not self.windows.rolling:
            raise UsageError("windows=… are those along the checkpoints: they are rolling")
        if self.dtype not in DTYPES:
            raise UsageError(f"dtype={self.dtype!r} must be one of {', '.join(DTYPES)}")
        for name, value in (("context", self.context), ("batch", self.batch), ("limit", self.limit)):
            if value is not None and value < 1:
                raise UsageError(f"{name}={value} must be at least 1")
        if (self.include or self.fewshot is not None) and not self.tasks:
            raise UsageError("include and fewshot belong to tasks; name them with --tasks")
        try:
            torch.device(self.device)
        except RuntimeError:
            raise UsageError(f"device={self.device!r} is no device of torch's; write cpu, cuda or cuda:1") from None
