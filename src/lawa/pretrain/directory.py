"""A run's directory, from the outside. No torch: a wrong path is refused at once."""

from __future__ import annotations

from pathlib import Path

from lawa.checkpoints.publish import is_published
from lawa.errors import LawaError, UsageError

CONFIG = "config.yaml"
FINAL = "final"
STORE = "store"


def check_new(run: Path) -> None:
    """Raise unless a run can start in `run`: nothing is there, or only text that an earlier try has tokenized."""
    if run.exists() and not (run.is_dir() and all(entry.name.lstrip(".").startswith(STORE) for entry in run.iterdir())):
        raise UsageError(f"{run} exists already; go on with it (lawa train --resume {run}), or choose another --output")


def check_resumable(run: Path) -> None:
    """Raise unless `run` was started and is not finished."""
    if not (run / CONFIG).is_file():
        raise UsageError(f"{run} is no run (it has no {CONFIG}); start one with: lawa train CONFIG.yaml --output RUN")
    if is_published(run / FINAL):
        raise LawaError(f"{run} is finished; its model is in {run / FINAL}")
