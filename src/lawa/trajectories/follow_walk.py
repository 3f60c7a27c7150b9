"""One pass along the checkpoints: fetch in the background → load once → evict → average → evaluate → drop."""

from __future__ import annotations

import queue
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from lawa.checkpoints import formats
from lawa.checkpoints.catalog import Catalog
from lawa.checkpoints.named import named
from lawa.checkpoints.sources import check_unchanged
from lawa.errors import LawaError
from lawa.offline.in_memory import average, kept, load, map_in
from lawa.trajectories.follow_plan import PLAIN, Due, Plan, Series, Stage
from lawa.trajectories.follow_records import evaluation
from lawa.trajectories.follow_source import Source

Weights = Mapping[str, Tensor]
Seconds = dict[str, float]  # by kind of work


class Evaluate(Protocol):
    """As follow_evaluation.Evaluator."""

    def look(self, folder: Path) -> None: ...

    def __call__(self, weights: Weights, label: str) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class _Held:
    """A snapshot; `mapped`: its tensors lie in the files of its catalog."""

    weights: Weights
    catalog: Catalog
    mapped: bool

    def checked(self) -> Weights:
        if self.mapped:
            check_unchanged(self.catalog)
        return self.weights


def walk(
    plan: Plan,
    due: Mapping[Due, tuple[int, ...]],
    series: Iterable[Series],
    source: Source,
    evaluate: Evaluate,
    *,
    scratch: Path,
    accumulate: str,
    record: Callable[[dict[str, Any]], None],
) -> Seconds:
    """Do the evaluations of `plan`, each recorded as it is done; the seconds that each kind of work took.

    scratch     a folder for checkpoints that cannot be read in place; a step's part of it goes with the step
    accumulate  dtype of the sums, "float32" or "float64"
    record      takes a line of metrics.jsonl

    Every checkpoint is fetched and loaded once. What fails behind is raised when its step is needed.
    """
    coefficients = {one.name: one.coefficients for one in series}
    seconds: Seconds = defaultdict(float)
    held: dict[int, _Held] = {}
    with _Behind.working(source, plan) as behind:
        for stage in plan.stages:
            with _timed(seconds, "fetching"):
                path = behind.path()
            with _timed(seconds, "loading"):
                held[stage.step] = _load(path, source, stage, scratch / str(stage.step), evaluate)
            behind.loaded(stage)
            for name in stage.due:
                inputs = due[stage.step, name]
                with _timed(seconds, "averaging"):
                    made = _made(name, [held[step] for step in inputs], coefficients, accumulate)
                with _timed(seconds, "evaluation"):
                    found = evaluate(made, f"{name} of {source.name} step {stage.step}")
                tokens = source.tokens_per_update and source.tokens_per_update * stage.step
                record(evaluation(stage.step, name, tokens, inputs, found))
            for step in stage.dropped:
                del held[step]
                shutil.rmtree(scratch / str(step), ignore_errors=True)
            behind.dropped(stage)
    return seconds


def _made(
    name: str, held: Sequence[_Held], coefficients: Mapping[str, Sequence[float] | None], accumulate: str
) -> Weights:
    weights = [one.checked() for one in held]
    if name == PLAIN:
        return weights[0]
    return average(weights, coefficients[name], accumulate=accumulate, labels=[one.catalog.label for one in held])


class _Behind:
    """One thread that talks to the source, in order: it fetches ahead, as far as the plan says, and evicts between."""

    def __init__(self, source: Source, plan: Plan) -> None:
        self._source, self._mapped = source, {stage.step for stage in plan.stages if stage.mapped}
        self._coming: Iterator[Stage] = iter(plan.stages)
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._there: queue.SimpleQueue[Path | BaseException] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="lawa-fetch", daemon=True)
        for _ in range(plan.ahead + 1):
            self._fetch()

    @classmethod
    @contextmanager
    def working(cls, source: Source, plan: Plan) -> Iterator[_Behind]:
        """Ends when all is evicted; where the block fails, what is on its way breaks off."""
        behind = cls(source, plan)
        behind._thread.start()
        try:
            yield behind
        except BaseException:
            source.stop()
            raise
        finally:
            behind._work.put(None)
            behind._thread.join()
        if not behind._there.empty():
            behind.path()

    def path(self) -> Path:
        """Where the next checkpoint is, once it is there; raises what its fetch, or an eviction, failed with."""
        found = self._there.get()
        if isinstance(found, BaseException):
            raise found
        return found

    def loaded(self, stage: Stage) -> None:
        if not stage.mapped:
            self._evict(stage.step)

    def dropped(self, stage: Stage) -> None:
        for step in stage.dropped:
            if step in self._mapped:
                self._evict(step)
        self._fetch()

    def _fetch(self) -> None:
        if (stage := next(self._coming, None)) is not None:
            step = stage.step
            self._work.put(lambda: self._there.put(self._source.fetch(step)))

    def _evict(self, step: int) -> None:
        self._work.put(lambda: self._source.evict(step))

    def _run(self) -> None:
        try:
            while (work := self._work.get()) is not None:
                work()
        except BaseException as failed:
            self._there.put(failed)


def _load(path: Path, source: Source, stage: Stage, scratch: Path, evaluate: Evaluate) -> _Held:
    """A snapshot, without causal masks and the like, once the evaluation has seen its configuration."""
    try:
        return _read(path, source, stage, scratch, evaluate)
    except (LawaError, OSError):
        if stage.step not in source.fetched or _is_there(path):
            raise
    source.evict(stage.step)  # another worker, whose steps overlap, has removed it meanwhile
    return _read(source.fetch(stage.step), source, stage, scratch, evaluate)


def _is_there(path: Path) -> bool:
    try:
        formats.look(path)
    except LawaError:
        return False
    return True


def _read(path: Path, source: Source, stage: Stage, scratch: Path, evaluate: Evaluate) -> _Held:
    def folder() -> Path:
        made = scratch / str(len(list(scratch.iterdir())) if scratch.is_dir() else 0)
        made.mkdir(parents=True)
        return made

    label = f"{source.name} step {stage.step}"
    catalog = named(formats.catalog(path, label=label, scratch=folder))
    weights = kept(map_in(catalog) if stage.mapped else load(catalog), label=label)
    if stage.due:
        evaluate.look(catalog.directory or path)
    if not stage.mapped:
        shutil.rmtree(scratch, ignore_errors=True)
    return _Held(weights, catalog, stage.mapped)


@contextmanager
def _timed(seconds: Seconds, what: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    seconds[what] += time.perf_counter() - begun
