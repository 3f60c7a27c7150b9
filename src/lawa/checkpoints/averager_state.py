"""The averager's state in a directory beside a trainer's checkpoint.

    DIRECTORY/manifest.json  averager.json  snapshots/00001000/  running/NAME/

Tensors are torch DCP's, so a sharded model's state goes on on another number of ranks. A snapshot never changes: it is
written once, and hard-linked into the states that come after, so that removing any of them takes nothing from another.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp

from lawa.averaging.averager import WeightAverager
from lawa.checkpoints import dcp_metadata
from lawa.checkpoints.publish import begin, complete, is_published, link, listed, remove, verify
from lawa.checkpoints.together import from_first
from lawa.errors import LawaError

META = "averager.json"
SNAPSHOTS = "snapshots"


class AveragerState:
    """Saves and loads the state of one averager. With torch.distributed, every rank calls (a shared file system)."""

    def __init__(self, averager: WeightAverager) -> None:
        self.averager = averager
        self._last: Path | None = None  # the state that was saved or loaded last
        self._there: frozenset[int] = frozenset()  # the updates whose snapshots it has

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Publish the state as `directory`, in place of an older state there."""
        directory = Path(directory)
        held = {step for name in self.averager.averages for step in self.averager.steps(name)}
        last = self._last
        linked = from_first(lambda: held & self._there if last is not None and is_published(last) else set())
        state = self.averager.state_dict(without=linked)
        partial = from_first(lambda: _begin(directory))
        for step, tensors in state["snapshots"].items():
            _save({"snapshot": tensors}, partial / SNAPSHOTS / step)
        for name, tensors in state["running"].items():
            _save({"running": tensors}, partial / "running" / name)

        def finish() -> None:
            known = {}
            if linked:
                assert last is not None  # or nothing would be there
                folders = [f"{SNAPSHOTS}/{step:08d}" for step in linked]
                for folder in folders:
                    link(last / folder, partial / folder)
                known = {file: one for file, one in listed(last).items() if file.rpartition("/")[0] in folders}
            (partial / META).write_text(state["meta"] + "\n", encoding="utf-8")
            if directory.exists():
                remove(directory)
            complete(partial, directory, known)

        from_first(finish)
        self._last, self._there = directory, frozenset(held)

    def load(self, directory: str | os.PathLike[str]) -> None:
        """Take over the state in `directory`. Raises LawaError for a damaged one, before anything is changed."""
        directory = Path(directory)
        from_first(lambda: verify(directory))
        meta = (directory / META).read_text(encoding="utf-8")
        self.averager.make_room(meta)
        state = self.averager.state_dict()
        for step, tensors in state["snapshots"].items():
            _load({"snapshot": tensors}, directory / SNAPSHOTS / step)
        for name, tensors in state["running"].items():
            _load({"running": tensors}, directory / "running" / name)
        self.averager.load_state_dict({**state, "meta": meta})
        self._last, self._there = directory, frozenset(map(int, state["snapshots"]))


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
