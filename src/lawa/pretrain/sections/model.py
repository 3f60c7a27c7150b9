"""The settings of the model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lawa.errors import UsageError
from lawa.pretrain.presets import ARCHITECTURES, PRESETS
from lawa.settings import check_choices, setting

_INITIAL = ("preset", "architecture", "config", "weights")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model is trained, of what size, and from which weights."""

    preset: str | None = setting(None, f"a known size: {', '.join(PRESETS)}", choices=tuple(PRESETS))
    architecture: str | None = setting(
        None,
        "in place of a preset; the sizes come from model.overrides, and transformers' defaults are large",
        choices=ARCHITECTURES,
    )
    config: str | None = setting(
        None, "in place of a preset: a config.json, a folder or a hub name; its shape is trained from fresh weights"
    )
    weights: str | None = setting(
        None,
        "in place of a preset: a folder or hub name whose weights training starts from; data.tokenizer must be theirs",
    )
    optimizer: str | None = setting(
        None,
        "with model.weights: an optimizer.safetensors with Adam's moments and steps of these weights, by name, as a "
        "checkpoint's training/ has it; default: fresh ones",
    )
    revision: str | None = setting(
        None, "of a hub name: a branch, tag or commit (default: main); the commit is recorded in run.json"
    )
    overrides: dict[str, Any] = setting({}, "fields of the transformers configuration, laid over the rest")

    def __post_init__(self) -> None:
        check_choices(self, "model")
        given = [name for name in _INITIAL if getattr(self, name) is not None]
        if len(given) != 1:
            *most, last = (f"model.{name}" for name in given or _INITIAL)
            raise UsageError(
                f"{', '.join(most)} and {last} exclude each other; set only one of them"
                if given
                else f"set {', '.join(most)} or {last}, and only one of them"
            )
        if self.optimizer is not None and self.weights is None:
            raise UsageError("model.optimizer belongs to model.weights; name the weights that it was trained with")
        if self.revision is not None and (self.source is None or Path(self.source).exists()):
            raise UsageError(
                f"model.revision={self.revision!r} needs a hub name in model.weights or model.config; remove it"
            )

    @property
    def source(self) -> str | None:
        """The existing model that the shape comes from, as it is named."""
        return self.weights or self.config

    def absolute(self) -> ModelConfig:
        """The same with absolute paths, which mean the same wherever a run is gone on with."""

        def absolute(name: str | None) -> str | None:
            return str(Path(name).absolute()) if name and Path(name).exists() else name

        return dataclasses.replace(
            self, config=absolute(self.config), weights=absolute(self.weights), optimizer=absolute(self.optimizer)
        )
