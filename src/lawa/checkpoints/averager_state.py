"""The averager's state in a directory beside a trainer's checkpoint.

    DIRECTORY/manifest.json  averager.json  snapshots/00001000/  running/NAME/

Tensors are torch DCP's, so a sharded model's state goes on on another number of ranks. A snapshot never changes: it is
written once, and hard-linked into the states that come after, so that removing any of them takes nothing from another.
"""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp

from lawa.averaging.averager import WeightAverager
from lawa.averaging.window import Held
from lawa.checkpoints import dcp_metadata
from lawa.checkpoints.publish import begin, complete, hidden, is_published, link, listed, to_disk, verify
from lawa.checkpoints.together import from_first, on_all, rank, ranks
from lawa.errors import LawaError

META = "averager.json"
SNAPSHOTS = "snapshots"


class AveragerState:
    """Saves and loads the state of one averager. With torch.distributed, every rank calls (a shared file system).

    Make one before the loop: it knows which of its snapshots lie where.
    """

    def __init__(self, averager: WeightAverager) -> None:
        self.averager = averager
        self._last: Path | None = None  # the state that was saved or loaded last
        self._there: dict[int, Held] = {}  # the snapshots that it has: these, and not others of the same updates

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Publish the state as `directory`, in place of an older state there, which stays until this one is whole."""
        directory = Path(directory)
        held = {one.step: one for one in self.averager.snapshots()}
        last = self._last
        linked = {step for step, one in held.items() if self._there.get(step) is one}
        linked = from_first(lambda: linked if last is not None and is_published(last) else set())
        state = self.averager.state_dict(without=linked)
        partial = from_first(lambda: _begin(directory))
        for step, tensors in state["snapshots"].items():
            _save({"snapshot": tensors}, partial / SNAPSHOTS / step)
        for name, tensors in state["running"].items():
            _save({"running": tensors}, partial / "running" / name)
        known: dict[str, dict[str, Any]] = {}
        for mine in on_all(lambda: _told(partial)):
            known |= mine

        def finish() -> None:
            if linked:
                assert last is not None  # or nothing would be there
                folders = [f"{SNAPSHOTS}/{step:08d}" for step in linked]
                for folder in folders:
                    link(last / folder, partial / folder)
                known.update({file: one for file, one in listed(last).items() if file.rpartition("/")[0] in folders})
            (partial / META).write_text(state["meta"] + "\n", encoding="utf-8")
            aside = hidden(directory)
            shutil.rmtree(aside, ignore_errors=True)
            complete(partial, directory, known, aside=aside)
            shutil.rmtree(aside, ignore_errors=True)

        from_first(finish)
        self._last, self._there = directory, held

    def load(self, directory: str | os.PathLike[str]) -> None:
        """Take over the state in `directory`. Raises LawaError for a damaged one, before anything is changed."""
        directory = Path(directory)
        on_all(lambda: verify(directory, part=rank(), of=ranks()))
        meta = (directory / META).read_text(encoding="utf-8")
        self.averager.make_room(meta)
        state = self.averager.state_dict()
        for step, tensors in state["snapshots"].items():
            _load({"snapshot": tensors}, directory / SNAPSHOTS / step)
        for name, tensors in state["running"].items():
            _load({"running": tensors}, directory / "running" / name)
        self.averager.load_state_dict({**state, "meta": meta})
        self._last, self._there = directory, {one.step: one for one in self.averager.snapshots()}


def _told(partial: Path) -> dict[str, dict[str, Any]]:
    """What the manifest says of the files that this rank's DCP wrote, which are brought to disk."""
    return {file.relative_to(partial).as_posix(): to_disk(file) for file in partial.rglob(f"__{rank()}_*.distcp")}


def _begin(directory: Path) -> Path:
    if directory.exists() and not is_published(directory):
        raise LawaError(f"{directory} is in the way of the averager's state; remove it")
    return begin(directory.with_name(f"{directory.name}.next"))


def _save(state: dict[str, Any], place: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")
        dcp.save(state, checkpoint_id=place)


def _load(state: dict[str, Any], place: Path) -> None:
    dcp_metadata.check(place)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")
        dcp.load(state, checkpoint_id=place)
