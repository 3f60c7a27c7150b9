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

from lawa.errors import UsageError, require
from lawa.pretrain.sections.averaging import AveragingConfig
from lawa.pretrain.sections.data import DataConfig
from lawa.pretrain.sections.model import ModelConfig
from lawa.pretrain.sections.output import CheckpointsConfig, EvaluationConfig
from lawa.pretrain.sections.tracking import TrackingConfig
from lawa.pretrain.sections.training import TrainingConfig
from lawa.settings import build, check_seed, merge, setting


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything about a run."""

    model: ModelConfig
    data: DataConfig
    training: TrainingConfig
    averaging: AveragingConfig
    evaluation: EvaluationConfig
    checkpoints: CheckpointsConfig
    tracking: TrackingConfig
    seed: int = setting(0, "of the initial weights and the order of the data")

    def __post_init__(self) -> None:
        check_seed("seed", self.seed)
        self.averaging.check_reached(self.training.updates, self.training.start)
        if self.training.sharding != "none" and (self.averaging.prefill or self.model.optimizer):
            given = "averaging.prefill" if self.averaging.prefill else "model.optimizer"
            raise UsageError(f"{given} needs a whole model on each process; set training.sharding=none")
        if self.training.start and self.model.weights is None:
            raise UsageError("training.start needs the weights that have these updates behind them: model.weights")
        self.averaging.check_on_disk(self.checkpoints.every)

    def without_effect(self) -> list[str]:
        """A sentence for every setting that changes nothing in this run."""
        return self.training.without_effect()

    @property
    def tokens_per_update(self) -> int:
        return self.training.batch * self.data.context

    def to_dict(self) -> dict[str, Any]:
        """Plain mappings, as they are written to RUN/config.yaml: with absolute paths."""
        return dataclasses.asdict(dataclasses.replace(self, model=self.model.absolute(), data=self.data.absolute()))


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
