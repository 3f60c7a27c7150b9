"""The checkpoints that are followed: on disk where they lie, or on the hub, fetched one by one. No torch."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from lawa.checkpoints import formats
from lawa.checkpoints.select import Found, Selection, Steps, resolve
from lawa.checkpoints.sources import nbytes_of
from lawa.errors import LawaError
from lawa.records import read_json

if TYPE_CHECKING:
    from lawa.trajectories.fetch import Fetcher
    from lawa.trajectories.registry import Trajectory

_SAMPLE = 1 << 16  # bytes at a file's beginning and end that tell it


class Stopped(Exception):
    """A fetch was broken off."""


class Source(Protocol):
    """
    name               of the run
    where              its repo, or folder
    tokens_per_update  None where it is not known
    tokenizer          a name on the hub or a folder, or None: that of a checkpoint
    nbytes             {step: bytes of its weights}, of all steps that are followed
    contents           {step: what tells its content: a commit, or a digest of a sample}
    fetched            the steps that take room on disk while they are needed
    """

    @property
    def name(self) -> str: ...
    @property
    def where(self) -> str: ...
    @property
    def tokens_per_update(self) -> int | None: ...
    @property
    def tokenizer(self) -> str | None: ...
    @property
    def nbytes(self) -> Mapping[int, int]: ...
    @property
    def contents(self) -> Mapping[int, str]: ...
    @property
    def fetched(self) -> frozenset[int]: ...

    def fetch(self, step: int) -> Path:
        """Its directory or file, once it is on disk."""
        ...

    def evict(self, step: int) -> None:
        """It is not needed on disk any more."""
        ...

    def stop(self) -> None:
        """Break off what is being fetched, in another thread."""
        ...


@dataclass(frozen=True, kw_only=True)
class OnDisk:
    """Checkpoints on this machine, which stay as they are."""

    name: str
    where: str
    tokens_per_update: int | None
    paths: Mapping[int, Path]
    nbytes: Mapping[int, int]
    contents: Mapping[int, str]
    tokenizer: str | None = None
    fetched: frozenset[int] = field(default_factory=frozenset)

    def fetch(self, step: int) -> Path:
        return self.paths[step]

    def evict(self, step: int) -> None:
        pass

    def stop(self) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class OnHub:
    """Of a registered trajectory. `stopped`: see breaking_off."""

    trajectory: Trajectory
    fetcher: Fetcher
    stopped: threading.Event
    nbytes: Mapping[int, int]
    contents: Mapping[int, str]

    @property
    def name(self) -> str:
        return self.trajectory.name

    @property
    def where(self) -> str:
        return self.trajectory.repo

    @property
    def tokens_per_update(self) -> int | None:
        return self.trajectory.batch * self.trajectory.context or None

    @property
    def tokenizer(self) -> str | None:
        return self.trajectory.tokenizer

    @property
    def fetched(self) -> frozenset[int]:
        return frozenset(self.nbytes)

    def fetch(self, step: int) -> Path:
        return self.fetcher.fetch([step])[step]

    def evict(self, step: int) -> None:
        self.fetcher.evict(step)

    def stop(self) -> None:
        self.stopped.set()


def on_disk(named: Sequence[str], steps: Steps | None) -> OnDisk:
    """A run of lawa train, a folder of checkpoints by step, or several checkpoints; LawaError for steps not there."""
    found = resolve(named, Selection(steps=steps), trajectory=True)
    paths = {one.step: one.path for one in found if one.step is not None and one.path is not None}
    first = Path(named[0])
    run = first / "run.json"
    described = read_json(run) if run.is_file() else {}
    looked = {step: _look(path) for step, path in paths.items()}
    return OnDisk(
        name=str(described.get("name") or first.resolve().name),
        where=str(first) if len(named) == 1 else f"{first} and {len(named) - 1} more",
        tokens_per_update=described.get("tokens_per_update"),
        paths=paths,
        nbytes={step: nbytes for step, (nbytes, _) in looked.items()},
        contents={step: content for step, (_, content) in looked.items()},
    )


def breaking_off(stopped: threading.Event) -> Callable[[str, int, int], None]:
    """Progress for a Fetcher that ends it between two pieces once `stopped` is set; what has come is kept."""

    def progress(what: str, done: int, of: int) -> None:
        if stopped.is_set():
            raise Stopped("it was not needed any more")

    return progress


def on_hub(trajectory: Trajectory, fetcher: Fetcher, stopped: threading.Event, steps: Steps | None) -> OnHub:
    """The steps of it that are wanted; LawaError naming those that it does not have. Asks the hub for their sizes."""
    there = [Found(label=f"{trajectory.name} step {step}", step=step) for step in trajectory.steps]
    wanted = [one.step for one in Selection(steps=steps).of(there, trajectory.name) if one.step is not None]
    planned = fetcher.plan(wanted)
    return OnHub(
        trajectory=trajectory,
        fetcher=fetcher,
        stopped=stopped,
        nbytes={step: nbytes for step, _, _, nbytes in planned},
        contents={step: commit for step, _, commit, _ in planned},
    )


def _look(path: Path) -> tuple[int, str]:
    """(bytes of its weights, a digest of the sizes, beginnings and ends of their files)."""
    known = formats.foreseen(path)
    files = known.files if known else sorted(one for one in path.rglob("*") if one.is_file())
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        try:
            with file.open("rb") as opened:
                digest.update(opened.read(_SAMPLE))
                opened.seek(max(0, size - _SAMPLE))
                digest.update(opened.read(_SAMPLE))
        except OSError as unreadable:
            raise LawaError(
                f"{file} cannot be read ({unreadable.strerror}); mend that, or leave its step out"
            ) from None
    return known.nbytes if known else nbytes_of(path), digest.hexdigest()[:20]
