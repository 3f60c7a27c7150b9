"""One training run: its checkpoints, the rule of its learning rate, its data, what is wrong with it. No torch."""

from __future__ import annotations

import difflib
from bisect import bisect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lawa.errors import LawaError
from lawa.pretrain.schedules import SCHEDULES
from lawa.pretrain.sections.training import TrainingConfig
from lawa.settings import build
from lawa.trajectories.naming import Naming


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """A run, as far as it is known. What is not known is 0, None or empty, and asking for it says so.

    repo        ORG/NAME on the hub; of an own run its directory
    naming      updates ↔ revisions
    interval    updates from one checkpoint to the next, where the steps are regular
    steps       all updates that have a checkpoint, ascending
    main        the update whose weights the branch main holds; None where it holds something else
    total       T, updates of the whole run
    batch       sequences an update
    context     tokens a sequence; one more is read, as the last one's target
    vocab_size  rows of the embedding
    tokenizer   a name on the hub, or a folder
    weights     in which formats and dtypes they are released, in words
    training    settings of lawa train (lawa.pretrain.sections.training), as far as the run is known to have used them
    data        {"kind": as lawa.data.batches has it, "repo": …, "files": names in order, …}, or None
    optimizer   {"format": "neox" | "olmo", "repo" or "url": …, "revisions": pattern, "steps": those known, or None}
    bad         {update: why its checkpoint is not what it says}
    same        groups of revisions whose weights are rightly equal
    notes       in words; what is "unverified: …" nobody has seen for us
    folders     {update: its checkpoint} of a run on disk
    """

    name: str
    family: str
    repo: str
    naming: Naming
    interval: int
    steps: Sequence[int]
    total: int
    main: int | None = None
    batch: int = 0
    context: int = 0
    vocab_size: int = 0
    tokenizer: str | None = None
    weights: str | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] | None = None
    optimizer: Mapping[str, Any] | None = None
    bad: Mapping[int, str] = field(default_factory=dict)
    same: Sequence[Sequence[str]] = ()
    notes: Sequence[str] = ()
    folders: Mapping[int, Path] = field(default_factory=dict)

    def revision(self, step: int, revisions: Iterable[str] | None = None) -> str:
        """The revision that holds the checkpoint of update `step`.

        revisions  those that the repo has: one of them is taken, whatever it says of tokens

        Raises LawaError where there is none.
        """
        if revisions is not None:
            if (found := self.naming.among(step, revisions)) is None:
                called = self.naming.revision(step)
                raise LawaError(f"{self.repo} has no revision of update {step}, which would be called {called}")
            return found
        if step not in self._known:
            raise LawaError(f"{self.name} has no checkpoint of update {step}; {self._near(step)}")
        return self.naming.revision(step)

    def step(self, revision: str) -> int | None:
        """The update whose checkpoint a revision holds; None for one that is not of this run."""
        return self.main if revision == "main" and self.main is not None else self.naming.step(revision)

    def rate(self, t: int) -> float:
        """The learning rate that update t used, 1 ≤ t ≤ T. LawaError where the run's rule is not known."""
        if not self.training:
            raise LawaError(f"the learning rate of {self.name} is not known; {self._tell('training')}")
        if not 1 <= t <= self.total:
            raise LawaError(f"{self.name} has no update {t}: its updates are 1 … {self.total}")
        return self._settings.rate(t)

    def tokens(self, step: int) -> int:
        """How many had been consumed after update `step`. LawaError where an update's number of them is not known."""
        if not self.batch * self.context:
            raise LawaError(f"the tokens of an update of {self.name} are not known; {self._tell('batch and context')}")
        return step * self.batch * self.context

    @property
    def horizon(self) -> int:
        """T of the learning rate's rule, which may lie beyond the run's end."""
        return self.training.get("horizon") or self.total

    def scheduled(self, schedule: str) -> Trajectory:
        """The same with another rule of the learning rate, as lawa.pretrain.schedules names them."""
        if schedule not in SCHEDULES:
            near = difflib.get_close_matches(schedule, SCHEDULES, n=1)
            raise LawaError(f"there is no schedule {schedule!r}; {f'did you mean {near[0]}?' if near else SCHEDULES}")
        return replace(self, training={**self.training, "schedule": schedule})

    @cached_property
    def _settings(self) -> TrainingConfig:
        return build(TrainingConfig, self.training, "training")

    @cached_property
    def _known(self) -> frozenset[int]:
        return frozenset(self.steps)

    def _near(self, step: int) -> str:
        if not self.steps:
            return "none is known"
        at = bisect(self.steps, step)
        return f"the nearest are of {' and '.join(map(str, self.steps[max(0, at - 1) : at + 1]))}"

    def _tell(self, what: str) -> str:
        return f"tell its {what} in a YAML file of your own"
