"""Where a branch starts: the released weights, with the optimizer's state of that update where it is public."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

from lawa.checkpoints import hub
from lawa.checkpoints.carry import is_beside
from lawa.checkpoints.hub_client import Repo
from lawa.errors import LawaError
from lawa.records import write_json
from lawa.trajectories import elsewhere
from lawa.trajectories.trajectory import Trajectory

OPTIMIZER = "optimizer.safetensors"
CONVERTED = "converted.json"
_FILES = {
    "neox": ("layer_*-model_*-model_states.pt", "mp_rank_*_model_states.pt", "*zero_pp_rank_*_optim_states.pt"),
    "olmo": ("config.yaml", "model.pt", "optim.pt", "train.pt"),
}


def has_state(trajectory: Trajectory, step: int, *, offline: bool = False) -> bool:
    """Whether the optimizer's state of update `step` is public, as far as it is known or its repo tells."""
    if trajectory.folders:
        return (trajectory.folders[step] / "training" / OPTIMIZER).is_file()
    told = trajectory.optimizer
    if told is None:
        return False
    if told["steps"] is not None or told["repo"] is None:
        return told["steps"] is None or step in told["steps"]
    return _revision(trajectory, step) in hub.revisions(Repo(told["repo"]), offline=offline)


def start_of(trajectory: Trajectory, step: int, released: Path, place: Path, *, offline: bool = False) -> Path:
    """A folder with fp32 weights, OPTIMIZER, configuration and tokenizer of update `step`; made in `place`, once.

    released  the released checkpoint of that update: what its native one does not have comes from there

    Raises LawaError where the state cannot be had, and where it is of another update.
    """
    if (place / CONVERTED).is_file():
        return place
    if trajectory.folders:
        return _own(released, place)
    from lawa.trajectories.optimizer_state import convert  # torch

    native = _fetch(trajectory, step, place.with_name(f"{place.name}-native"), offline=offline)
    shutil.rmtree(place, ignore_errors=True)  # of a kill before it was told
    found = convert(native, place, config=released / "config.json")
    if found.update != step:
        shutil.rmtree(place)
        raise LawaError(
            f"the optimizer state that {trajectory.name} has for update {step} is of update {found.update}; choose "
            "another --step, or --optimizer fresh"
        )
    _beside(released, place)
    write_json(place / CONVERTED, asdict(found))
    return place


def _own(released: Path, place: Path) -> Path:
    """A checkpoint of lawa train has its state in a folder of its own."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for file in released.iterdir():
        if file.is_file():
            (place / file.name).symlink_to(file.resolve())
    (place / OPTIMIZER).symlink_to((released / "training" / OPTIMIZER).resolve())
    write_json(place / CONVERTED, {"format": "lawa", "checkpoint": str(released)})
    return place


def _fetch(trajectory: Trajectory, step: int, place: Path, *, offline: bool) -> Path:
    told = trajectory.optimizer
    assert told is not None  # has_state() said so
    if told["repo"] is None:
        return elsewhere.fetch(told["url"].format(step=step), _FILES[told["format"]], place, offline=offline)
    repo = Repo(told["repo"], _revision(trajectory, step))
    pinned = hub.pin(repo, only=_FILES[told["format"]], offline=offline)
    [folder] = hub.fetch_all([pinned])
    return folder


def _revision(trajectory: Trajectory, step: int) -> str:
    assert trajectory.optimizer is not None
    return trajectory.optimizer["revisions"].format(step=step)


def _beside(released: Path, place: Path) -> None:
    for file in released.iterdir():
        if file.is_file() and is_beside(file.name) and not (place / file.name).exists():
            shutil.copy(file, place / file.name)
