"""What is kept of a run. Looks only at what is on disk, so it is applied again on resume: a kill may fall inside it."""

from __future__ import annotations

from pathlib import Path

from lawa.checkpoints.find import step_directories
from lawa.checkpoints.publish import is_published
from lawa.checkpoints.retention import keep_latest, thin
from lawa.pretrain.checkpoint.position import State
from lawa.pretrain.config import Config
from lawa.pretrain.directory import CHECKPOINTS, TRAINING


def retain(run: Path, config: Config) -> None:
    """Let go of what the configuration does not keep; never of what a window still needs."""
    wanted, checkpoints = config.checkpoints, run / CHECKPOINTS
    thin(checkpoints, TRAINING, keep=wanted.resumable)
    if wanted.keep is not None:
        needed = _in_windows(checkpoints) if config.averaging.placement == "disk" else set()
        keep_latest(checkpoints, wanted.keep, needed=needed)
    if wanted.save_averages == "last":
        for averages in (run / "averages").glob("*"):
            keep_latest(averages, 1)


def _in_windows(checkpoints: Path) -> set[int]:
    """The updates that some window holds, of any checkpoint that training can go on from."""
    return {
        step
        for path in step_directories(checkpoints).values()
        if is_published(path / TRAINING)
        for steps in State.read(path / TRAINING).windows.values()
        for step in steps
    }
