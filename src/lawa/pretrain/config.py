"""A run's configuration: every setting with its default, checked before any work. No torch.

A configuration file is YAML with these sections. It may also have `arms`: named overlays, of which
`lawa train --arm NAME` lays one over the rest.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lawa.errors import UsageError, require
from lawa.pretrain.averaging import AveragingConfig
from lawa.pretrain.presets import ARCHITECTURES, PRESETS
from lawa.pretrain.schedules import SCHEDULES
from lawa.pretrain.settings import build, check_at_least, check_choices, merge, required, setting

SAVED = ("last", "all", "none")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which of transformers' classes is trained from scratch, and its size."""

    preset: str | None = setting(None, f"a known size: {', '.join(PRESETS)}", choices=tuple(PRESETS))
    architecture: str | None = setting(
        None,
        "in place of a preset; the sizes come from model.overrides, and transformers' defaults are large",
        choices=ARCHITECTURES,
    )
    overrides: dict[str, Any] = setting({}, "fields of the transformers configuration, laid over the rest")

    def __post_init__(self) -> None:
        check_choices(self, "model")
        if (self.preset is None) == (self.architecture is None):
            raise UsageError("set model.preset or model.architecture, and only one of them")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The text, its tokenizer, and the sequences made of it."""

    train: list[str] = required(
        "text files or folders of .txt files; one file is one document, and there must be two or more of them unless "
        "data.validation is given"
    )
    validation: list[str] | None = setting(None, "text held out; without it, validation_fraction of the documents is")
    validation_fraction: float = setting(0.05, "the share of the text, by whole documents, that is held out")
    tokenizer: str | None = setting(None, "a tokenizer.json, a folder or a hub name; without it, one is trained")
    vocab_size: int = setting(4096, "of the tokenizer that is trained")
    context: int = setting(1024, "tokens a sequence")
    seed: int = setting(0, "of the choice of held-out documents; runs that are compared share it")
    store: str | None = setting(None, "where the tokenized text is kept and found again; default: RUN/store")

    def __post_init__(self) -> None:
        if not self.train:
            raise UsageError("data.train is empty; name text files or folders")
        check_at_least(self, "data", 1, "context")
        check_at_least(self, "data", 257, "vocab_size")
        _check_seed("data.seed", self.seed)
        if not 0 < self.validation_fraction < 1:
            raise UsageError(f"data.validation_fraction={self.validation_fraction} must lie between 0 and 1")

    def absolute(self) -> DataConfig:
        """The same with absolute paths, which mean the same wherever a run is gone on with."""

        def absolutes(paths: list[str]) -> list[str]:
            return [str(Path(path).absolute()) for path in paths]

        local = self.tokenizer is not None and Path(self.tokenizer).exists()  # and not a name on the hub
        return dataclasses.replace(
            self,
            train=absolutes(self.train),
            validation=absolutes(self.validation) if self.validation else self.validation,
            tokenizer=str(Path(self.tokenizer).absolute()) if self.tokenizer and local else self.tokenizer,
            store=str(Path(self.store).absolute()) if self.store else self.store,
        )


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How many updates, of what, by which rule."""

    updates: int = required("how many optimizer updates the run has")
    batch: int = required("sequences an update")
    micro_batch: int | None = setting(None, "sequences a forward; default: batch. It changes memory, not the batches")
    lr: float = required("the peak learning rate")
    min_lr: float = setting(0.0, "the learning rate at the end of a decaying schedule")
    schedule: str = setting("cosine", "of the learning rate after warm-up", choices=SCHEDULES)
    warmup: int = setting(0, "updates over which the learning rate rises linearly to its peak")
    decay: int | None = setting(None, "wsd only: updates of the final decay; default: a fifth of the run")
    weight_decay: float = setting(0.1, "decoupled, on matrices and embeddings; never on norms and biases")
    beta1: float = setting(0.9, "AdamW's")
    beta2: float = setting(0.95, "AdamW's")
    eps: float = setting(1e-8, "AdamW's")
    clip: float = setting(1.0, "the largest gradient norm; 0 never clips")
    precision: str = setting("fp32", "bf16: bf16 arithmetic under autocast on fp32 weights", choices=("fp32", "bf16"))
    device: str = setting("auto", "auto: a GPU if there is one", choices=("auto", "cpu", "cuda"))
    log_every: int = setting(10, "updates between two lines of training loss")

    def __post_init__(self) -> None:
        check_choices(self, "training")
        check_at_least(self, "training", 1, "updates", "batch", "log_every")
        check_at_least(self, "training", 0, "warmup", "decay", "weight_decay", "clip")
        for name in ("lr", "eps"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"training.{name}={getattr(self, name)} must be above 0, and finite")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"training.{name}={getattr(self, name)} must lie in [0, 1)")
        if not 0 <= self.min_lr <= self.lr:
            raise UsageError(f"training.min_lr={self.min_lr} must lie between 0 and training.lr={self.lr}")
        if self.warmup >= self.updates:
            raise UsageError(f"training.warmup={self.warmup} leaves nothing of training.updates={self.updates}")
        if self.decay is not None and self.schedule != "wsd":
            raise UsageError(f"training.decay has no meaning for training.schedule={self.schedule!r}; remove it")
        if self.warmup + self.decay_updates > self.updates:
            raise UsageError(f"training.warmup + training.decay exceed training.updates={self.updates}")
        if self.micro_batch is not None and (self.micro_batch < 1 or self.batch % self.micro_batch):
            raise UsageError(f"training.micro_batch={self.micro_batch} must divide training.batch={self.batch}")

    @property
    def decay_updates(self) -> int:
        if self.schedule != "wsd":
            return 0
        return self.updates // 5 if self.decay is None else self.decay


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """When and on how much of the held-out text."""

    every: int = setting(1000, "updates between evaluations of the plain weights and every ready average")
    sequences: int = setting(256, "held-out sequences, evenly spread over the text; the same ones each time")
    batch: int = setting(32, "sequences a forward")

    def __post_init__(self) -> None:
        check_at_least(self, "evaluation", 1, "every", "sequences", "batch")


@dataclass(frozen=True, kw_only=True)
class CheckpointsConfig:
    """What is written, and what is kept."""

    every: int = setting(1000, "updates between checkpoints")
    keep: int | None = setting(None, "how many checkpoints are kept, the latest; default: all")
    save_averages: str = setting(
        "last", "averaged weights beside a checkpoint: the last ones are kept, or all", choices=SAVED
    )

    def __post_init__(self) -> None:
        check_choices(self, "checkpoints")
        check_at_least(self, "checkpoints", 1, "every", "keep")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything about a run."""

    model: ModelConfig
    data: DataConfig
    training: TrainingConfig
    averaging: AveragingConfig
    evaluation: EvaluationConfig
    checkpoints: CheckpointsConfig
    seed: int = setting(0, "of the initial weights and the order of the data")

    def __post_init__(self) -> None:
        _check_seed("seed", self.seed)
        self.averaging.check_reached(self.training.updates)

    def without_effect(self) -> list[str]:
        """A sentence for every setting that changes nothing in this run."""
        training = self.training
        if training.min_lr and training.schedule == "constant":
            return [f"training.min_lr={training.min_lr} has no effect with training.schedule='constant'"]
        return []

    @property
    def tokens_per_update(self) -> int:
        return self.training.batch * self.data.context

    def to_dict(self) -> dict[str, Any]:
        """Plain mappings, as they are written to RUN/config.yaml: with absolute paths."""
        return dataclasses.asdict(dataclasses.replace(self, data=self.data.absolute()))


def load(path: str | Path, *, arm: str | None = None, overrides: Mapping[str, Any] | None = None) -> Config:
    """The configuration file at `path`, with one of its arms and then `overrides` laid over it."""
    values = read_yaml(path)
    arms = values.pop("arms", None) or {}
    if arm is not None:
        if arm not in arms:
            raise UsageError(f"{path} has no arm {arm!r}; it has {', '.join(arms) or 'none'}")
        values = merge(values, arms[arm] or {})
    return build(Config, merge(values, overrides or {}))


def read_yaml(path: str | Path) -> dict[str, Any]:
    yaml = require("yaml", extra="train")
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as missing:
        raise UsageError(f"{path} cannot be read ({missing.strerror}); name a configuration file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as bad:
        raise UsageError(f"{path} is not YAML: {' '.join(str(bad).split())}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path} must hold sections of settings (model, data, training, …)")
    return values


def _check_seed(path: str, seed: int) -> None:
    if not 0 <= seed < 1 << 63:
        raise UsageError(f"{path}={seed} must be at least 0 and below 2^63")
