"""From a checkpoint to where training was when it was made."""

from __future__ import annotations

from pathlib import Path

from lawa.checkpoints.find import step_directories
from lawa.checkpoints.publish import remove, verify
from lawa.errors import LawaError, UsageError
from lawa.pretrain.checkpoint import sharded, whole
from lawa.pretrain.checkpoint.position import Position, State
from lawa.pretrain.checkpoint.retain import retain
from lawa.pretrain.directory import CHECKPOINTS, TRAINING, resumable
from lawa.pretrain.setup import Setup
from lawa.records import Records


def load(run: Path, directory: Path, setup: Setup, records: Records) -> Position:
    """Bring the run to where it was when `directory` was saved; damaged files are refused before anything changes."""
    ranks, training = setup.ranks, directory / TRAINING
    with ranks.main_first():
        if ranks.main:
            _verify(run, directory)
            later = [path for path in step_directories(run / CHECKPOINTS).values() if path.name > directory.name]
            if later:
                raise LawaError(
                    f"{later[-1]} is later than {directory.name}, the last that training can go on from (its training/ "
                    "is gone); move it elsewhere, as it would be written again"
                )
    state = State.read(training)
    if state.format != ("dcp" if ranks.sharded else "hf"):
        was, now = ("fsdp2", "none") if state.format == "dcp" else ("none", "fsdp2")
        raise UsageError(
            f"{directory} was saved with training.sharding={was} and cannot be gone on from with {now}; "
            f"leave training.sharding at {was}"
        )
    if ranks.sharded:
        sharded.read_weights(directory, setup.model, ranks.writing)
        sharded.read_optimizer(training, setup.model, setup.optimizer, ranks.writing)
    else:
        whole.read_weights(directory, setup.model)
        whole.read_optimizer(training, setup.model, setup.optimizer)
    if setup.averager is not None and state.averager is not None:
        setup.averager.load_state_dict(
            sharded.read_averager(training, setup.averager, state.averager, ranks.writing)
            if ranks.sharded
            else whole.read_averager(training, state.averager)
        )
    if setup.scaler is not None and state.scaler is not None:
        setup.scaler.load_state_dict(state.scaler)
    position = Position(**state.position)
    with ranks.main_first():
        if ranks.main:
            records.cut_back(state.records)
            # What was published after the checkpoint will be published again.
            for average in (run / "averages").glob("*"):
                for update, path in step_directories(average).items():
                    if update > position.update:
                        remove(path)
            retain(run, setup.config)
    return position


def _verify(run: Path, directory: Path) -> None:
    try:
        verify(directory)
        verify(directory / TRAINING)
    except LawaError as damage:
        earlier = [path for path in resumable(run / CHECKPOINTS).values() if path != directory]
        way = (
            f"put the file back, or remove {directory} to go on from {earlier[-1].name}"
            if earlier
            else "put the file back: there is no earlier checkpoint to go on from"
        )
        raise LawaError(f"{damage}; {way}") from None
