"""What is known of a checkpoint that was converted, beside its tensors; and the files that it becomes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from lawa.checkpoints.layouts.transformers5 import names_in_files
from lawa.trajectories.named_files import lay_out

MODEL, OPTIMIZER = "model.safetensors", "optimizer.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")
MASTER = "master"

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What was read.

    format         "neox" or "olmo"
    update         t: updates that the weights have behind them
    step           Adam's own count, of its bias correction: updates that were made, those of DeepSpeed's
                   initialization too
    skipped        updates that a loss scaler skipped
    lr_iterations  the iteration that the run's schedule stood at, where it is stored: update t + 1 has its rate
    scaler         of the loss scaler, what LossScaler.load_state_dict takes; None without one
    config         whether config.json was written
    without_state  parameters that have no moments
    apart          {name: largest difference} of weights that model-parallel ranks keep alike and that had drifted
                   apart; their mean was taken
    """

    format: str
    update: int
    step: float
    skipped: int = 0
    lr_iterations: int | None = None
    scaler: dict[str, Any] | None = None
    config: bool
    without_state: list[str] = field(default_factory=list)
    apart: dict[str, float] = field(default_factory=dict)

    @property
    def loss_scale(self) -> float | None:
        return None if self.scaler is None else self.scaler["scale_now"]


class Outputs:
    """The two files of tensors: masters and moments by the weights' names in transformers' files."""

    def __init__(self, folder: Path, shapes: Shapes, *, model_type: str, without: Iterable[str] = ()) -> None:
        missing = set(without)
        self._own = _names_in_memory(model_type, shapes)
        self._model = lay_out(folder / MODEL, shapes)
        trained = {self._own[name]: shape for name, shape in shapes.items() if name not in missing}
        moments = {f"{key}.{name}": shape for key in MOMENTS for name, shape in trained.items()}
        self._optimizer = lay_out(folder / OPTIMIZER, {**moments, **{f"step.{name}": () for name in trained}})

    def tensor(self, key: str, name: str) -> Tensor:
        """`key`: MASTER, one of MOMENTS, or "step"."""
        return self._model[name] if key == MASTER else self._optimizer[f"{key}.{self._own[name]}"]


def _names_in_memory(model_type: str, names: Iterable[str]) -> dict[str, str]:
    """{weight in transformers' files: parameter of its model}."""
    stored = {file: own for own, file in names_in_files(model_type, ["lm_head.weight"]).items()}
    return {name: stored.get(name, name) for name in names}
