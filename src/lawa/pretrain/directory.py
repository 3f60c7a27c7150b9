"""A run's directory, from the outside. No torch: a wrong path is refused at once."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lawa.checkpoints.find import step_directories
from lawa.checkpoints.publish import is_published
from lawa.errors import LawaError, UsageError

CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"
TRAINING = "training"
WEIGHTS = "weights"
FINAL = "final"
STORE = "store"
LOCK = ".lock"


def check_new(run: Path) -> None:
    """Raise unless a run can start in `run`: nothing is there, or only text that an earlier try has tokenized."""
    if not run.exists():
        return
    if is_published(run / FINAL):
        raise UsageError(f"{run} is finished; choose another --output")
    if (run / CONFIG).is_file():
        if latest(run) is None:
            raise _nothing_saved(run)
        raise UsageError(f"{run} exists already; go on with it (lawa train --resume {run}), or choose another --output")
    if not run.is_dir() or not all(
        entry.name == LOCK or entry.name.lstrip(".").startswith(STORE) for entry in run.iterdir()
    ):
        raise UsageError(f"{run} exists already and is no run; choose another --output")


def check_run(run: Path) -> None:
    """Raise unless `run` was started."""
    if not (run / CONFIG).is_file():
        raise UsageError(f"{run} is no run (it has no {CONFIG}); start one with: lawa train CONFIG.yaml --output RUN")


def check_resumable(run: Path, *, updates: int | None = None) -> tuple[int, Path]:
    """The latest checkpoint's update and directory; raise unless `run` was started, saved and is not finished.

    updates  how many it is to have; more than a finished run has had are a way on
    """
    check_run(run)
    found = latest(run)
    if is_published(run / FINAL) and (found is None or updates is None or updates <= found[0]):
        raise LawaError(
            f"{run} is finished; its model is in {run / FINAL}. To train on, give --training.updates more than it had"
        )
    if found is None:
        raise _nothing_saved(run)
    return found


def resumable(checkpoints: Path) -> dict[int, Path]:
    """{update: directory} of the checkpoints that training can go on from, oldest first."""
    return {update: path for update, path in step_directories(checkpoints).items() if is_published(path / TRAINING)}


def latest(run: Path) -> tuple[int, Path] | None:
    """(update, directory) of the latest checkpoint that training can go on from."""
    found = resumable(run / CHECKPOINTS)
    return max(found.items()) if found else None


def way_on(run: Path) -> str:
    """What to do about a run that was interrupted, in words."""
    if is_published(run / FINAL):
        return f"it is finished; its model is in {run / FINAL}"
    if found := latest(run):
        return f"go on after update {found[0]} with: lawa train --resume {run}"
    if (run / CONFIG).is_file():
        return f"it has no checkpoint yet; remove {run} and start anew"
    return "nothing was trained yet; start anew"


@contextmanager
def alone(run: Path) -> Iterator[None]:
    """Hold the run for this one process; a process that is killed gives it back."""
    with (run / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LawaError(f"{run} is being trained by another process; wait for it, or choose another run") from None
        yield


def _nothing_saved(run: Path) -> UsageError:
    with alone(run):  # another process may be about to save
        pass
    return UsageError(f"{run} stopped before its first checkpoint; remove it and start anew, or choose another place")
