"""From a checkpoint to where training was when it was made."""

from __future__ import annotations

from pathlib import Path

from lawa.checkpoints.find import step_directory
from lawa.checkpoints.publish import is_published, remove, verify
from lawa.errors import LawaError, UsageError
from lawa.pretrain.checkpoint import sharded, whole
from lawa.pretrain.checkpoint.position import Position, State
from lawa.pretrain.checkpoint.retain import retain
from lawa.pretrain.directory import CHECKPOINTS, TRAINING, resumable
from lawa.pretrain.setup import Setup
from lawa.records import Records


def load(run: Path, directory: Path, setup: Setup, records: Records) -> Position:
    """Bring the run to where it was when `directory` was saved; check_whole comes first."""
    ranks, training = setup.ranks, directory / TRAINING
    state = State.read(training)
    if state.format != ("dcp" if ranks.sharded else "hf"):
        was, now = ("fsdp2", "none") if state.format == "dcp" else ("none", "fsdp2")
        raise UsageError(
            f"{directory} was saved with training.sharding={was} and cannot be gone on from with {now}; "
            f"leave training.sharding at {was}"
        )
    averaging = setup.config.averaging
    if averaging.mode != "none" and averaging.placement != "disk" and _in_checkpoints(training):
        raise UsageError(
            f"{directory} was saved with averaging.placement=disk and holds no snapshots; leave it at disk"
        )
    if ranks.sharded:
        sharded.read_weights(directory, setup.model, ranks.writing)
        sharded.read_optimizer(training, setup.model, setup.optimizer, ranks.writing)
    else:
        whole.read_weights(directory, setup.model)
        whole.read_optimizer(training / whole.OPTIMIZER, setup.model, setup.optimizer)
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
            for path in (run / "averages").glob("*/step*"):  # whole or damaged
                if path.name > directory.name:
                    remove(path)
            retain(run, setup.config)
    return position


def check_whole(run: Path, directory: Path) -> None:
    """Raise for a damaged file of `directory`, and for what is later than it; before anything is read or changed."""
    damage = _damage(directory)
    if damage is not None:
        raise LawaError(f"{damage}; put the file back{_around(run, directory)}")
    for step in sorted(_in_checkpoints(directory / TRAINING)):
        path = step_directory(run / CHECKPOINTS, step)
        if path != directory and is_published(path):  # of a missing one the averager tells
            try:
                verify(path)
            except LawaError as damage:
                raise LawaError(f"{damage}, and a window needs it; put the file back, or start anew") from None
    later = sorted(path for path in (run / CHECKPOINTS).glob("step*") if path.name > directory.name)
    if later:
        raise LawaError(
            f"{later[-1]} is later than {directory.name}, the last that training can go on from (its training/ or its "
            "manifest is gone); move it elsewhere, as it would be written again"
        )


def _in_checkpoints(training: Path) -> set[int]:
    """The updates whose checkpoints are the windows' snapshots: with placement=disk."""
    if any((training / "snapshots").iterdir()):
        return set()
    return {step for steps in State.read(training).windows.values() for step in steps}


def _around(run: Path, directory: Path) -> str:
    """How to go on without the damaged `directory`."""
    damaged = [directory]
    for earlier in reversed([path for path in resumable(run / CHECKPOINTS).values() if path != directory]):
        if _damage(earlier) is None:
            return f", or remove {' and '.join(map(str, damaged))} to go on from {earlier.name}"
        damaged.append(earlier)  # snapshots are linked: what hits one may hit both
    return ": there is no earlier checkpoint to go on from"


def _damage(directory: Path) -> LawaError | None:
    try:
        verify(directory)
        verify(directory / TRAINING)
    except LawaError as damage:
        return damage
    return None
