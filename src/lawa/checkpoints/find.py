"""Where the checkpoints of a run lie, in the order of their updates."""

from __future__ import annotations

import os
import re
from pathlib import Path

from lawa.checkpoints.publish import is_published

_STEP = re.compile(r"step(\d+)")


def step_directory(parent: str | os.PathLike[str], step: int) -> Path:
    """PARENT/step00001000; zero-padded, so that names sort as updates do."""
    return Path(parent) / f"step{step:08d}"


def step_directories(parent: str | os.PathLike[str]) -> dict[int, Path]:
    """{update: directory} of every published checkpoint in `parent`, oldest first."""
    parent = Path(parent)
    if not parent.is_dir():
        return {}
    found = {
        int(match[1]): entry
        for entry in parent.iterdir()
        if (match := _STEP.fullmatch(entry.name)) and is_published(entry)
    }
    return dict(sorted(found.items()))
