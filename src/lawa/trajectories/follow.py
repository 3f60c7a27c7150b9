"""Averages along a run: each checkpoint is fetched, loaded once, averaged, evaluated, and evicted.

The plan comes first and is told before any work; what a killed one has recorded is not done again.

    request → source (disk | hub) → plan → [fetch → load → evict → average → evaluate → record → drop] → results
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lawa.averaging.coefficients import Spec
from lawa.checkpoints.select import Steps
from lawa.errors import UsageError
from lawa.parallel import Cluster
from lawa.records import read, write_json
from lawa.trajectories import follow_text
from lawa.trajectories.follow_plan import (
    Due,
    Plan,
    Series,
    all_series,
    due_evaluations,
    groups,
    interval_of,
    make_plan,
)
from lawa.trajectories.follow_records import (
    GROUPS,
    METRICS,
    REQUEST,
    RESULTS,
    RUN,
    Journal,
    describe,
    results,
    take_in,
)
from lawa.trajectories.follow_source import Source, breaking_off, on_disk, on_hub
from lawa.trajectories.follow_text import Evaluation
from lawa.trajectories.request import alone, begin

SCRATCH = ".scratch"
_DECIDING = ("context", "limit", "dtype")  # of an evaluation, beside its text
Walked = tuple[Mapping[str, float], dict[str, Any]]  # seconds by kind of work, and what the model is
Tell = Callable[[Mapping[str, Any]], None]  # takes a line of metrics.jsonl once it is recorded


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for.

    trajectory      a registered name, a YAML file, a run's directory, a folder of checkpoints, or several checkpoints
    steps           which are followed: see checkpoints.select.Selection
    windows, spacings, families   every combination is an average: see follow_plan
    accumulate      dtype of the sums, "float32" or "float64"
    disk_bytes      for what is fetched; None: any
    host_bytes      for snapshots in memory; None: half of the machine's
    workers         processes of the Ray cluster at `address`, each with these budgets of its own; 1: this one
    """

    trajectory: Sequence[str]
    steps: Steps | None
    windows: Sequence[int]
    spacings: Sequence[int] = (1,)
    families: Sequence[Spec] = ("uniform",)
    evaluation: Evaluation
    accumulate: str = "float32"
    disk_bytes: int | None = None
    host_bytes: int | None = None
    workers: int = 1
    address: str | None = None
    offline: bool = False
    allow_bad: bool = False
    allow_duplicates: bool = False

    def __post_init__(self) -> None:
        for name in ("disk_bytes", "host_bytes"):
            if (value := getattr(self, name)) is not None and value < 0:
                raise UsageError(f"{name}={value} must not be below 0")
        if self.workers < 1:
            raise UsageError(f"workers={self.workers} must be at least 1")


class Following:
    """A request, looked through when this is made: what is there, what is done already, what the rest takes."""

    def __init__(self, request: Request, output: Path) -> None:
        self.request, self.output = request, output
        self.series = all_series(request.windows, request.spacings, request.families)
        self.text = follow_text.identity(request.evaluation.text)
        self._stack = ExitStack()
        try:
            self.source = open_source(request, request.steps, self._stack)
            self.steps = sorted(self.source.nbytes)
            self.interval = interval_of(self.steps)
            self.due = due_evaluations(self.steps, self.series, self.interval)
            self._plan(recorded(output))
        except BaseException:
            self._stack.close()
            raise

    def _plan(self, done: set[Due]) -> None:
        self.done = done & self.due.keys()
        left = {one: inputs for one, inputs in self.due.items() if one not in done}
        self.groups = groups(left, self.request.workers)
        self.plans = [plan_for(self.request, self.source, group) for group in self.groups]

    @property
    def asked(self) -> dict[str, Any]:
        """The request as DIR/follow.json has it: what decides the numbers, and not how they come about."""
        evaluation = {name: value for name, value in asdict(self.request.evaluation).items() if name in _DECIDING}
        return {
            "trajectory": {
                "name": self.source.name, "where": self.source.where,
                "tokens_per_update": self.source.tokens_per_update, "interval": self.interval,
            },
            "steps": self.steps,
            "contents": {str(step): self.source.contents[step] for step in self.steps},
            "averages": {one.name: _told(one, self.interval, self.request.accumulate) for one in self.series},
            "text": self.text,
            "evaluation": evaluation,
        }  # fmt: skip

    def close(self) -> None:
        """Let go of what a plan alone has opened."""
        self._stack.close()

    def run(self, tell: Tell = lambda line: None) -> list[dict[str, Any]]:
        """Do what is left; follow_records.results: each average at each step, its gain, the updates it is ahead.

        Raises LawaError with everything recorded so far kept, and UsageError where the output is another follow's.
        """
        output = self.output
        with self._stack, alone(output):
            begin(output, REQUEST, self.asked)
            journal = Journal(output / METRICS)
            take_in(output, journal)
            self._plan(journal.done)
            shutil.rmtree(output / SCRATCH, ignore_errors=True)
            if not (output / RUN).is_file():
                describe(output, self.asked, {})
            if self.groups:
                seconds = (self._here if self.request.workers == 1 else self._on_cluster)(journal, tell)
                tokens = self.source.tokens_per_update and self.source.tokens_per_update * self.steps[-1]
                journal.append({"kind": "end", "update": self.steps[-1], "tokens": tokens, "seconds": seconds})
            for step in self.steps:  # what a killed one has fetched and this one did not need
                self.source.evict(step)
            found = results(journal.lines)
            write_json(output / RESULTS, {"results": found})
        return found

    def _here(self, journal: Journal, tell: Tell) -> Mapping[str, float]:
        [group], [plan] = self.groups, self.plans

        def record(line: Mapping[str, Any]) -> None:
            journal.append(line)
            tell(line)

        seconds, model = _walk(self.request, self.source, group, plan, self.series, self.output / SCRATCH / "0", record)
        describe(self.output, self.asked, model)
        return seconds

    def _on_cluster(self, journal: Journal, tell: Tell) -> Mapping[str, float]:
        (self.output / GROUPS).mkdir(exist_ok=True)
        seconds: dict[str, float] = defaultdict(float)
        shared = _Shared(self.request, self.output, self.series, Path.cwd())
        known = len(journal.lines)
        self._stack.close()  # what was left in the cache belongs to the workers
        try:
            for took, model in Cluster(self.request.address).run(_group, shared, list(enumerate(self.groups))):
                for what, spent in took.items():
                    seconds[what] += spent
                if model:
                    describe(self.output, self.asked, model)
        finally:
            take_in(self.output, journal)
            for line in journal.lines[known:]:
                tell(line)
        self.source = open_source(self.request, self.steps, self._stack)
        return seconds


def open_source(request: Request, steps: Steps | None, stack: ExitStack) -> Source:
    """Where the checkpoints are; what it opens is closed with `stack`."""
    named = [str(one) for one in request.trajectory]
    if all(Path(one).exists() and Path(one).suffix not in (".yaml", ".yml") for one in named):
        return on_disk(named, steps)
    if len(named) > 1:
        missing = next(one for one in named if not Path(one).exists())
        raise UsageError(f"{missing} is no checkpoint on this machine; name one trajectory, or checkpoints on disk")
    from lawa.trajectories.fetch import Fetcher
    from lawa.trajectories.registry import find

    trajectory, stopped = find(named[0]), threading.Event()
    fetcher = Fetcher(
        trajectory,
        budget=sys.maxsize if request.disk_bytes is None else request.disk_bytes,  # with one, a kill leaves nothing
        offline=request.offline,
        allow_bad=request.allow_bad,
        allow_duplicates=request.allow_duplicates,
        progress=breaking_off(stopped),
    )
    return on_hub(trajectory, stack.enter_context(fetcher), stopped, steps)


def plan_for(request: Request, source: Source, due: Mapping[Due, tuple[int, ...]]) -> Plan:
    """How one process does the evaluations `due` within its budgets."""
    return make_plan(
        due,
        source.nbytes,
        host_bytes=half_of_memory() if request.host_bytes is None else request.host_bytes,
        disk_bytes=request.disk_bytes,
        fetched=source.fetched,
    )


def half_of_memory() -> int:
    """Bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def recorded(output: Path) -> set[Due]:
    """The evaluations that are in an output already, those of groups too."""
    files = [output / METRICS, *sorted((output / GROUPS).glob("*.jsonl"))]
    lines = [line for file in files if file.is_file() for line in read(file)]
    return {(line["update"], name) for line in lines for name in line.get("losses", ())}


@dataclass(frozen=True)
class _Shared:
    """What every group of steps is of; `here` is where relative paths begin."""

    request: Request
    output: Path
    series: Sequence[Series]
    here: Path


def _group(shared: _Shared, batch: tuple[int, Mapping[Due, tuple[int, ...]]]) -> Walked:
    """On a worker: one group of steps, recorded in its own file; done again, it goes on after what is there."""
    number, due = batch
    request = shared.request
    with contextlib.chdir(shared.here), ExitStack() as stack:
        journal = Journal(shared.output / GROUPS / f"{number}.jsonl")
        left = {one: inputs for one, inputs in due.items() if one not in journal.done}
        if not left:
            return {}, {}
        steps = sorted({step for inputs in left.values() for step in inputs})
        source = open_source(request, steps, stack)
        plan = plan_for(request, source, left)
        scratch = shared.output / SCRATCH / str(number)
        return _walk(request, source, left, plan, shared.series, scratch, journal.append)


def _walk(
    request: Request,
    source: Source,
    due: Mapping[Due, tuple[int, ...]],
    plan: Plan,
    series: Sequence[Series],
    scratch: Path,
    record: Tell,
) -> Walked:
    """(seconds by kind of work, what the model is)."""
    from lawa.trajectories.follow_evaluation import Evaluator
    from lawa.trajectories.follow_walk import walk

    evaluate = Evaluator(request.evaluation, tokenizer=source.tokenizer)
    seconds = walk(
        plan, due, series, source, evaluate, scratch=scratch, accumulate=request.accumulate, record=record
    )  # fmt: skip
    return seconds, evaluate.model


def _told(one: Series, interval: int, accumulate: str) -> dict[str, Any]:
    every = f"every {one.spacing * interval}"
    return {
        "what": f"window {one.size}, {every}, {one.family}",
        "size": one.size,
        "spacing": one.spacing,
        "coefficients": one.coefficients,
        "accumulate": accumulate,
    }
