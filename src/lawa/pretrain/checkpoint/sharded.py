"""Format "dcp": every process writes its shards with torch DCP, and any number of processes reads them back.

Not by DCP's async_save: a checkpoint is several DCP directories (so that training/ can be removed and snapshots be
linked), and two of its threads at once would mix up their messages. The thread is ours (`writer`), the files DCP's.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, distributed, nn

from lawa.averaging.averager import WeightAverager
from lawa.averaging.layout import full
from lawa.checkpoints import dcp_metadata
from lawa.checkpoints.disk_store import Saved
from lawa.pretrain.checkpoint.staging import Staged, Tensors, room_for_optimizer
from lawa.pretrain.directory import WEIGHTS

OPTIMIZER = "optimizer"

Group = distributed.ProcessGroup | None


def write_weights(directory: Path, weights: Tensors, group: Group) -> None:
    dcp.save({"model": weights}, checkpoint_id=directory / WEIGHTS, process_group=group)


def write_training(directory: Path, staged: Staged, group: Group) -> None:
    dcp.save({"optimizer": staged.optimizer}, checkpoint_id=directory / OPTIMIZER, process_group=group)
    for name, tensors in staged.running.items():
        dcp.save({"running": tensors}, checkpoint_id=directory / "running" / name, process_group=group)
    for step, tensors in staged.snapshots.items():
        place = directory / "snapshots" / snapshot_name(step)
        dcp.save({"snapshot": tensors}, checkpoint_id=place, process_group=group)


def snapshot_name(step: int) -> str:
    return f"{step:08d}"


def read_weights(directory: Path, model: nn.Module, group: Group) -> None:
    """In place, into the shards of `model`."""
    _load({"model": weights_of(model)}, directory / WEIGHTS, group)


def read_optimizer(training: Path, model: nn.Module, optimizer: torch.optim.Optimizer, group: Group) -> None:
    room = room_for_optimizer(model, optimizer)
    _load({"optimizer": room}, training / OPTIMIZER, group)


def read_averager(training: Path, averager: WeightAverager, meta: str, group: Group) -> dict[str, Any]:
    """The averager's state_dict, loaded in place into its own memory."""
    averager.make_room(meta)
    state = averager.state_dict()
    for step, tensors in state["snapshots"].items():
        _load({"snapshot": tensors}, training / "snapshots" / step, group)
    for name, tensors in state["running"].items():
        _load({"running": tensors}, training / "running" / name, group)
    return {**state, "meta": meta}


def weights_of(model: nn.Module) -> Tensors:
    """The model's state_dict with tied tensors once, under the first of their names, as the averager names them.

    By the parameters and not by their memory: some rank's shard of one may be empty, and all must agree.
    """
    again = dict(model.named_parameters(remove_duplicate=False)).keys() - dict(model.named_parameters()).keys()
    return {name: tensor for name, tensor in model.state_dict().items() if name not in again}


def gather(model: nn.Module, *, main: bool) -> Tensors:
    """The whole weights in host memory, on the main process; a collective for each, so all ranks call it."""
    whole: Tensors = {}
    for name, tensor in weights_of(model).items():
        complete = full(tensor)
        if main:
            whole[name] = complete.cpu()
    return whole


class SavedWeights(Saved):
    """The weights of a run's checkpoints, for windows with placement=disk; each rank reads its own shards."""

    def read(self, step: int, into: Mapping[str, Tensor]) -> None:
        _load_alone(self.directory(step) / WEIGHTS, into)


def _load(state: dict[str, Any], directory: Path, group: Group) -> None:
    """Fill the tensors in place, by all processes."""
    dcp_metadata.check(directory)
    dcp.load(state, checkpoint_id=directory, process_group=group)


def _load_alone(weights: Path, into: Mapping[str, Tensor]) -> None:
    """Fill the tensors, or this rank's shards of them, without the other processes."""
    dcp_metadata.check(weights)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")
        dcp.load({"model": dict(into)}, checkpoint_id=weights, no_dist=True)
