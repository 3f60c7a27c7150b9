"""Format "hf": whole tensors, written by one process; transformers reads the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from lawa.averaging.matching import canonical
from lawa.checkpoints.disk_store import Saved
from lawa.errors import LawaError
from lawa.pretrain.checkpoint.staging import Staged, Tensors

OPTIMIZER = "optimizer.safetensors"


def write_weights(directory: Path, model: PreTrainedModel, weights: Tensors) -> None:
    """What `model.save_pretrained` writes, with `weights` in place of the model's own."""
    model.save_pretrained(directory, state_dict=weights)


def write_training(directory: Path, staged: Staged) -> None:
    save_file(staged.optimizer, directory / OPTIMIZER)
    for name, tensors in staged.running.items():
        (directory / "running").mkdir(exist_ok=True)
        save_file(tensors, directory / "running" / f"{name}.safetensors")
    for step, tensors in staged.snapshots.items():
        save_file(tensors, directory / "snapshots" / snapshot_name(step))


def snapshot_name(step: int) -> str:
    return f"{step:08d}.safetensors"


def read_weights(directory: Path, model: PreTrainedModel) -> None:
    """Through transformers, which may store a tensor under another name than the model gives it."""
    saved = type(model).from_pretrained(directory, dtype=torch.float32)
    model.load_state_dict(saved.state_dict())


def read_optimizer(file: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    parameters = dict(model.named_parameters())
    for full, tensor in load_file(file).items():
        key, _, name = full.partition(".")
        optimizer.state[parameters[name]][key] = tensor.to(parameters[name].device, copy=True)  # no map of the file


def read_averager(training: Path, meta: str) -> dict[str, Any]:
    """The averager's state_dict; its tensors are memory maps."""

    def tensors(folder: str) -> dict[str, Tensors]:
        return {file.stem: load_file(file) for file in (training / folder).glob("*.safetensors")}

    return {"meta": meta, "snapshots": tensors("snapshots"), "running": tensors("running")}


class SavedWeights(Saved):
    """The weights of a run's checkpoints, for windows with placement=disk."""

    def __init__(self, checkpoints: Path, model: PreTrainedModel) -> None:
        super().__init__(checkpoints)
        self._names = _saved_names(model)

    def read(self, step: int, into: Mapping[str, Tensor]) -> None:
        directory, missing = self.directory(step), set(into)
        wanted = {saved: name for name in into for saved in self._names[name]}
        for file in sorted(directory.glob("model*.safetensors")):
            with safe_open(file, framework="pt") as tensors:
                for saved in wanted.keys() & set(tensors.keys()):
                    into[wanted[saved]].copy_(tensors.get_tensor(saved))
                    missing.discard(wanted[saved])
        if missing:
            raise LawaError(f"{directory} lacks the weights of {min(missing)!r}, which a window needs; put them back")


def _saved_names(model: PreTrainedModel) -> dict[str, list[str]]:
    """{parameter: names that its tensor may have in a file}: save_pretrained renames, and writes tied ones once."""
    own = dict(model.named_parameters(remove_duplicate=False))
    saved: dict[int, list[str]] = {}
    for name, tensor in revert_weight_conversion(model, dict(own)).items():
        saved.setdefault(id(tensor), []).append(name)
    lost = next((name for name, parameter in own.items() if id(parameter) not in saved), None)
    if lost is not None:
        raise LawaError(
            f"averaging.placement=disk: {type(model).__name__} stores {lost!r} in another shape than it trains it; "
            "choose another placement"
        )
    return {canonical(name): saved[id(parameter)] for name, parameter in own.items()}
