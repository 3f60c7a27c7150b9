"""The settings of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lawa.errors import UsageError
from lawa.pretrain.presets import ARCHITECTURES, PRESETS
from lawa.pretrain.settings import check_choices, setting


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
