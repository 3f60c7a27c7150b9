"""A run's configuration: every setting with its default, checked before any work. No torch.

A configuration file is YAML with these sections. It may also have `arms`: named overlays, of which
`lawa train --arm NAME` lays one over the rest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lawa.averaging.averages import EMA, Average, RunningMean, Window
from lawa.errors import LawaError, UsageError, require
from lawa.pretrain.presets import ARCHITECTURES, PRESETS
from lawa.pretrain.schedules import SCHEDULES
from lawa.pretrain.settings import build, merge, required, setting


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which of transformers' classes is trained from scratch, and its size."""

    preset: str | None = setting(None, f"a known size: {', '.join(PRESETS)}")
    architecture: str | None = setting(None, f"without a preset, one of {', '.join(ARCHITECTURES)}")
    overrides: dict[str, Any] = setting({}, "fields of the transformers configuration, laid over the preset")

    def __post_init__(self) -> None:
        _one_of("model.preset", self.preset, (*PRESETS, None))
        _one_of("model.architecture", self.architecture, (*ARCHITECTURES, None))
        if (self.preset is None) == (self.architecture is None):
            raise UsageError("set model.preset or model.architecture, and only one of them")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The text, its tokenizer, and the sequences made of it."""

    train: list[str] = required("text files or folders of .txt files; one file is one document")
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
        _at_least("data.context", self.context, 1)
        _at_least("data.vocab_size", self.vocab_size, 257)
        if not 0 < self.validation_fraction < 1:
            raise UsageError(f"data.validation_fraction={self.validation_fraction} must lie between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How many updates, of what, by which rule."""

    updates: int = required("how many optimizer updates the run has")
    batch: int = required("sequences an update")
    micro_batch: int | None = setting(None, "sequences a forward; default: batch. It changes memory, not the batches")
    lr: float = required("the peak learning rate")
    min_lr: float = setting(0.0, "the learning rate at the end of a decaying schedule")
    schedule: str = setting("cosine", f"after warm-up: {', '.join(SCHEDULES)}")
    warmup: int = setting(0, "updates over which the learning rate rises linearly to its peak")
    decay: int | None = setting(None, "wsd only: updates of the final decay; default: a fifth of the run")
    weight_decay: float = setting(0.1, "decoupled, on matrices and embeddings; never on norms and biases")
    beta1: float = setting(0.9, "AdamW's")
    beta2: float = setting(0.95, "AdamW's")
    eps: float = setting(1e-8, "AdamW's")
    clip: float = setting(1.0, "the largest gradient norm; 0 never clips")
    precision: str = setting("fp32", "fp32, or bf16: bf16 arithmetic under autocast on fp32 weights")
    device: str = setting("auto", "auto (a GPU if there is one), cpu or cuda")
    log_every: int = setting(10, "updates between two lines of training loss")

    def __post_init__(self) -> None:
        for name in ("updates", "batch", "log_every"):
            _at_least(f"training.{name}", getattr(self, name), 1)
        _at_least("training.warmup", self.warmup, 0)
        _one_of("training.schedule", self.schedule, SCHEDULES)
        _one_of("training.precision", self.precision, ("fp32", "bf16"))
        _one_of("training.device", self.device, ("auto", "cpu", "cuda"))
        if not self.lr > 0:
            raise UsageError(f"training.lr={self.lr} must be above 0")
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
class AveragingConfig:
    """The averages, and whether one of them replaces the weights; as lawa.WeightAverager takes them."""

    mode: str = setting("evaluate", "none; evaluate: training never sees the averages; replace: it goes on from one")
    every: int | None = setting(None, "updates between captures of the window 'lawa' (default 1000)")
    window: int | None = setting(None, "how many snapshots the window 'lawa' covers (default 10)")
    start: int | None = setting(None, "the first update at which it captures (default 1)")
    stop: int | None = setting(None, "the last update at which it captures")
    coefficients: Any = setting(None, "uniform, linear, one_minus_sqrt, {ema: B}, {decay: W} or a list, oldest first")
    min_window: int | None = setting(None, "snapshots from which on it counts as ready (default: all)")
    averages: dict[str, Any] = setting(
        {},
        "in place of the one window, several averages by name: {window: K, every: N, …}, {ema: BETA, …}, "
        "{ema: {matches: NAME}, …}, {running_mean: START, …}; an arm drops one with null",
    )
    replace_with: str | None = setting(None, "the average that replaces; default: the only one")
    after_replace: str | None = setting(None, "slide (default): the window keeps its snapshots; clear: starts anew")
    replace_every: int | None = setting(None, "updates between replacements (default: every capture)")
    replace_until: int | None = setting(None, "the last update for a replacement")
    strength: float | None = setting(None, "α in (0, 1]: θ ← θ + α(average − θ) (default 1)")
    moments: str | None = setting(None, "Adam's on a replacement: keep (default), reset, average")
    placement: str = setting("device", "of snapshots: device, or host (pinned memory)")
    accumulate: str = setting("float32", "dtype of the sum: float32 or float64")
    strict: bool = setting(False, "stop on a non-finite average instead of skipping its replacement")

    def __post_init__(self) -> None:
        _one_of("averaging.mode", self.mode, ("none", "evaluate", "replace"))
        _one_of("averaging.accumulate", self.accumulate, ("float32", "float64"))
        if self.averages and self.short:
            raise UsageError(
                f"averaging.{next(iter(self.short))} describes the one window 'lawa', but averaging.averages names "
                "its own; set it there"
            )
        try:
            named = self.named  # raises where they are impossible
        except LawaError as impossible:
            raise UsageError(f"averaging: {impossible}") from None
        if self.replace_with is not None and self.replace_with not in named:
            raise UsageError(f"averaging.replace_with={self.replace_with!r} is none of {', '.join(named)}")

    @property
    def short(self) -> dict[str, Any]:
        """The settings of the one window, as far as they are given."""
        names = ("every", "window", "start", "stop", "coefficients", "min_window")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    @property
    def named(self) -> dict[str, Average]:
        """{name: average}; empty with mode none."""
        if self.mode == "none":
            return {}
        if not self.averages:
            settings = dict(self.short)
            return {"lawa": Window(settings.pop("window", 10), **settings)}
        result: dict[str, Average] = {}
        for name, spec in self.averages.items():
            if spec is not None:  # an arm drops one of the base's averages by naming it with nothing
                result[name] = _average(name, spec, result)
        return result


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """When and on how much of the held-out text."""

    every: int = setting(1000, "updates between evaluations of the plain weights and every ready average")
    sequences: int = setting(256, "held-out sequences, evenly spread over the text; the same ones each time")
    batch: int = setting(32, "sequences a forward")

    def __post_init__(self) -> None:
        for name in ("every", "sequences", "batch"):
            _at_least(f"evaluation.{name}", getattr(self, name), 1)


@dataclass(frozen=True, kw_only=True)
class CheckpointsConfig:
    """What is written, and what is kept."""

    every: int = setting(1000, "updates between checkpoints")
    keep: int | None = setting(None, "how many checkpoints are kept, the latest; default: all")
    save_averages: str = setting("last", "averaged weights beside each checkpoint: last, all or none")

    def __post_init__(self) -> None:
        _at_least("checkpoints.every", self.every, 1)
        if self.keep is not None:
            _at_least("checkpoints.keep", self.keep, 1)
        _one_of("checkpoints.save_averages", self.save_averages, ("last", "all", "none"))


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

    @property
    def tokens_per_update(self) -> int:
        return self.training.batch * self.data.context

    def to_dict(self) -> dict[str, Any]:
        """Plain mappings, as they are written to RUN/config.yaml."""
        return dataclasses.asdict(self)


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


def _average(name: str, spec: Any, before: Mapping[str, Average]) -> Average:
    """One entry of averaging.averages; the key that names the kind carries its main setting."""
    kinds = ("window", "ema", "running_mean")
    if not isinstance(spec, Mapping) or len([kind for kind in kinds if kind in spec]) != 1:
        raise UsageError(f"averaging.averages.{name}={spec!r} must have exactly one of {', '.join(kinds)}")
    settings = dict(spec)
    try:
        if "window" in settings:
            return Window(settings.pop("window"), **settings)
        if "running_mean" in settings:
            return RunningMean(start=settings.pop("running_mean"), **settings)
        beta = settings.pop("ema")
        if not isinstance(beta, Mapping):
            return EMA(float(beta) if isinstance(beta, str) else beta, **settings)
        window = before.get(beta.get("matches", ""))
        if not isinstance(window, Window) or len(beta) != 1:
            raise UsageError(f"averaging.averages.{name}: matches must name a window given before it")
        return EMA.matched(window, **settings)
    except TypeError as unknown:
        raise UsageError(f"averaging.averages.{name}: {str(unknown).partition(') ')[2] or unknown}") from None
    except UsageError:
        raise
    except ValueError as impossible:
        raise UsageError(f"averaging.averages.{name}: {impossible}") from None


def _one_of(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        raise UsageError(f"{name}={value!r} must be one of {', '.join(str(one) for one in allowed if one is not None)}")


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise UsageError(f"{name}={value} must be at least {least}")
