"""torchtitan's trainer with the latest weights averaged. Both files on PYTHONPATH, then

    NGPU=8 MODULE=lawa_trainer CONFIG=llama3_debugmodel_lawa ./run_train.sh --lawa.every 2 --lawa.window 3

Everything but these options is torchtitan's own; `lawa_config` makes any of its configurations one with averaging.
Written against torchtitan b5bcd76 (August 2026).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from lawa_averaging import Averaging
from torchtitan.models.llama3.config_registry import llama3_debugmodel
from torchtitan.tools.logging import logger
from torchtitan.trainer import Trainer


@dataclass(kw_only=True, slots=True)
class LawaConfig:
    mode: Literal["evaluate", "replace"] = "evaluate"
    """Evaluate the average beside the model, or let training go on from it."""

    every: int = 1000
    """Steps between captures."""

    window: int = 10
    """How many snapshots the average covers."""

    placement: Literal["device", "host"] = "host"
    """Where snapshots lie: with the parameters, or in pinned host memory."""


class LawaTrainer(Trainer):
    @dataclass(kw_only=True, slots=True)
    class Config(Trainer.Config):
        lawa: LawaConfig = field(default_factory=LawaConfig)

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        settings = {one.name: getattr(config.lawa, one.name) for one in fields(config.lawa)}
        self.averaging = Averaging(self, **settings)
        if config.checkpoint.enable:
            self._load = self.checkpointer.dcp_load
            self.checkpointer.dcp_load = self._load_with_room
        if config.validator.enable:
            self._validate = self.validator.validate
            self.validator.validate = self._validate_averages_too

    def train_step(self, data_iterator: Any) -> None:
        self.averaging.before_step()
        super().train_step(data_iterator)
        self.averaging.after_step()

    def _load_with_room(self, state_dict: dict[str, Any], checkpoint_id: str, **more: Any) -> None:
        self.averaging.before_load(state_dict, checkpoint_id)
        self._load(state_dict, checkpoint_id=checkpoint_id, **more)

    def _validate_averages_too(self, model_parts: Any, step: int) -> None:
        def validate(name: str) -> None:
            logger.info(f"the average {name!r}:")
            self._validate(model_parts, step)

        self._validate(model_parts, step)
        self.averaging.validate(validate)


def lawa_config(base: Trainer.Config) -> LawaTrainer.Config:
    return LawaTrainer.Config(**{one.name: getattr(base, one.name) for one in fields(base) if one.init})


def llama3_debugmodel_lawa() -> LawaTrainer.Config:
    return lawa_config(llama3_debugmodel())
