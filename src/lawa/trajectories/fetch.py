"""Checkpoints of a trajectory onto this machine: pinned, several at once, within a disk budget, looked through."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from lawa.checkpoints import hub, hub_parts
from lawa.checkpoints.hub_cache import Pinned, is_weights
from lawa.checkpoints.hub_client import Repo
from lawa.checkpoints.publish import sha256
from lawa.checkpoints.sources import nbytes_of
from lawa.errors import LawaError
from lawa.trajectories.equal import refuse_equal_files, refuse_equal_tensors
from lawa.trajectories.held import Held
from lawa.trajectories.trajectory import Trajectory

Progress = Callable[[str, int, int], None]  # (what is done, how much of it, of how much)


class Planned(NamedTuple):
    """bytes: of its weights, configuration and tokenizer, whether they are here already or not."""

    step: int
    revision: str
    commit: str
    bytes: int


class Fetcher:
    """Checkpoints of one run, by step, in huggingface_hub's cache. Threads may share it.

    A revision is looked up once, and its commit is what is fetched, however it moves. What a fetch began, the next one
    goes on with, in another process too. With `offline`, or HF_HUB_OFFLINE=1, everything comes from the cache.

    budget            bytes on disk, of what was fetched under a budget and not evicted; blobs that snapshots share
                      count once, what was in the cache before does not. Left by an earlier process, it counts, and is
                      evicted where room is needed. One budget is for one process at a time
    allow_bad         steps that the registry knows to be wrong are fetched
    allow_duplicates  steps may have equal weights
    progress          ("bytes fetched", so far, of) as they come, from several threads

    Steps of equal weights that the registry does not tell to be the same are refused by name: by the SHA-256 of their
    files, of every step that was asked for and of the run's last one, which is what wrong branches hold as a rule,
    before anything is fetched. Steps of different formats or shards (.bin, safetensors) are compared by tensors, once
    they are here, with those that are still here; ones that were evicted, or that have another dtype, are not.
    """

    def __init__(
        self,
        trajectory: Trajectory,
        *,
        budget: int | None = None,
        offline: bool = False,
        allow_bad: bool = False,
        allow_duplicates: bool = False,
        progress: Progress = lambda what, done, of: None,
    ) -> None:
        self.trajectory, self.budget, self.offline = trajectory, budget, offline
        self.allow_bad, self.allow_duplicates = allow_bad, allow_duplicates
        self._progress = progress
        self._lock = threading.RLock()
        self._pinned: dict[int, Pinned] = {}
        self._read: dict[int, dict[str, str]] = {}  # digests of files that the hub keeps without one
        self._here: dict[int, Path] = {}
        self._coming: dict[str, int] = {}  # {blob: bytes}, on their way
        self._revisions: list[str] | None = None
        self._last_asked = False
        self._held = None if trajectory.folders else Held(Repo(trajectory.repo), kept=budget is not None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """What is held stays in the cache, for the next Fetcher."""
        if self._held is not None:
            self._held.close()

    def plan(self, steps: Iterable[int]) -> list[Planned]:
        """What the checkpoints of these steps are now, in the order given. Nothing is fetched.

        Raises LawaError for steps that are not of the run, known to be bad, or of equal weights.
        """
        wanted = list(dict.fromkeys(steps))
        self._check(wanted)
        if self._held is None:
            folders = self.trajectory.folders
            return [Planned(step, folders[step].name, "", nbytes_of(folders[step])) for step in wanted]
        pinned = self._pin(wanted)
        self._refuse_equal()
        found = [(step, pinned[step]) for step in wanted]
        return [Planned(step, str(one.repo.revision), one.commit, one.nbytes) for step, one in found]

    def fetch(self, steps: Iterable[int]) -> dict[int, Path]:
        """{step: the directory of its checkpoint}, each whole and verified.

        Raises LawaError as `plan` does, before anything is fetched where the budget or the disk has no room, and for a
        hub that cannot be reached or sends other bytes than it tells of.
        """
        planned = self.plan(steps)
        if self._held is None:
            return {one.step: self.trajectory.folders[one.step] for one in planned}
        pinned = [self._pinned[one.step] for one in planned]
        coming = self._reserve(pinned, self._held)
        try:
            paths = hub.fetch_all(pinned, arrived=self._counter(pinned))
        finally:
            with self._lock:
                for blob in coming:
                    self._coming.pop(blob, None)
        found = {one.step: path for one, path in zip(planned, paths, strict=True)}
        self._look_through(found)
        return found

    def evict(self, step: int, *, every: bool = False) -> None:
        """Remove from the cache what was fetched of a step, but for blobs that other snapshots have.

        every  what was in the cache before, too
        """
        with self._lock:
            self._here.pop(step, None)
            pinned = self._pinned.get(step)
            if self._held is None or pinned is None:
                return
            if any(self._pinned[other].commit == pinned.commit for other in self._here):
                return  # two steps of one commit
            self._held.evict(pinned.commit, every=every)
            # Should it come again, it is asked for again, of the same commit.
            self._pinned[step] = Pinned(pinned.repo, pinned.commit, pinned.files, pinned.digests)

    def _check(self, steps: Sequence[int]) -> None:
        for step in steps:
            revision = self.trajectory.revision(step)
            if step in self.trajectory.bad and not self.allow_bad:
                raise LawaError(
                    f"{self.trajectory.name} {revision} is known to be wrong ({self.trajectory.bad[step]}); choose "
                    "other steps, or --allow-bad"
                )

    def _pin(self, steps: Sequence[int]) -> Mapping[int, Pinned]:
        with self._lock:
            new = [step for step in steps if step not in self._pinned]
            if new:
                repos = [self._repo(step) for step in new]
                self._pinned |= zip(new, hub.pin_all(repos, offline=self.offline), strict=True)
            return self._pinned

    def _repo(self, step: int) -> Repo:
        """By the revision that the repo has for it, or should have."""
        if self._revisions is None:
            self._revisions = hub.revisions(Repo(self.trajectory.repo), offline=self.offline)
        name = self.trajectory.naming.among(step, self._revisions) or self.trajectory.revision(step)
        return Repo(self.trajectory.repo, name)

    def _refuse_equal(self) -> None:
        if self.allow_duplicates:
            return
        with self._lock:
            if not self._last_asked:
                self._last_asked = True
                with suppress(LawaError):  # nobody wants it
                    self._pin([step for step in self.trajectory.steps[-1:] if step not in self.trajectory.bad])
            contents = {
                step: {
                    **{name: one.digests[name] for name in filter(is_weights, one.digests)},
                    **self._read.get(step, {}),
                }
                for step, one in self._pinned.items()
            }
            revisions = self._names()
        refuse_equal_files(self.trajectory, contents, revisions)

    def _look_through(self, found: Mapping[int, Path]) -> None:
        """What only the files themselves tell."""
        with self._lock:
            self._here |= found
            pinned = {step: self._pinned[step] for step in self._here}
            here = dict(self._here)
        if self.allow_duplicates:
            return
        for step, path in found.items():
            without = [name for name in pinned[step].files if is_weights(name) and name not in pinned[step].digests]
            if without and step not in self._read:
                self._read[step] = {name: sha256(path / name) for name in without}
        self._refuse_equal()
        if len({frozenset(filter(is_weights, one.files)) for one in pinned.values()}) > 1:
            refuse_equal_tensors(self.trajectory, here, self._names())

    def _names(self) -> dict[int, str]:
        return {step: str(one.repo.revision) for step, one in self._pinned.items()}

    def _reserve(self, pinned: Sequence[Pinned], held: Held) -> dict[str, int]:
        """{blob: bytes} of what has to come, once there is room for it."""
        with self._lock:
            coming: dict[str, int] = {}
            for one in pinned:
                for name in one.missing():
                    blob = one.blob(name)
                    if blob is None or not blob.exists():
                        coming[blob.name if blob else f"{one.commit}/{name}"] = one.files[name]
            if coming and self.budget is not None:
                self._make_room(pinned, coming, held, self.budget)
            for one in pinned:
                held.expect(one)
            self._coming |= coming
            return coming

    def _make_room(self, pinned: Sequence[Pinned], coming: Mapping[str, int], held: Held, budget: int) -> None:
        """Remove what broke off and evict what others left, as far as has to be; LawaError where that does not do."""

        def together() -> int:
            broken = held.partials(but={**self._coming, **coming})
            return sum({**held.sizes(), **self._coming, **coming}.values()) + sum(broken.values())

        needed, commits = sum(coming.values()), {one.commit for one in pinned}
        if needed <= budget:
            for file in held.partials(but={**self._coming, **coming}) if together() > budget else ():
                hub_parts.remove(file)
            for commit in [one for one in held.left if one not in commits]:
                if together() > budget:
                    held.evict(commit)
        if (most := together()) > budget:
            raise LawaError(
                f"{self.trajectory.name}: {len(pinned)} checkpoints need {needed / 1e9:.3g} GB more on disk, where "
                f"{(most - needed) / 1e9:.3g} GB are held of a budget of {budget / 1e9:.3g} GB; allow at least "
                f"{most / 1e9:.3g} GB, or ask for fewer at once"
            )

    def _counter(self, pinned: Sequence[Pinned]) -> Callable[[int], None]:
        """Adds up what arrives."""
        so_far, lock = 0, threading.Lock()
        total = sum(one.nbytes for one in pinned if one.cached is None)

        def arrived(nbytes: int) -> None:
            nonlocal so_far
            with lock:
                so_far += nbytes
                self._progress("bytes fetched", so_far, total)

        return arrived
