"""Run directories, read into frozen values: what was evaluated, and what the run would hand over.

A run that replaces its weights has two validation losses at an update with a replacement: that of
the live weights before it ("plain" in the evaluation record) and that of the average they became (in
the replacement record). `zigzag` holds both, `delivered` the one the run would hand over if it
stopped there. For a run that does not replace, both equal `plain`.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lawa import records
from lawa.errors import LawaError, UsageError
from lawa.report.settings import flat_settings


@dataclass(frozen=True)
class Curve:
    """Validation losses (nats per token; nan or inf once diverged) at updates that never decrease."""

    name: str
    updates: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()
    losses: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Training:
    """What the training loop logged: the mean loss since the last line, and the learning rate."""

    updates: tuple[int, ...]
    tokens: tuple[int, ...]
    losses: tuple[float, ...]
    learning_rates: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Replacement:
    """The model's weights became an average; not `applied` when that average was not finite.

    `loss` is that of the replaced weights, None where it was not evaluated.
    """

    update: int
    tokens: int
    snapshots: int
    applied: bool
    loss: float | None


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run directory. `seconds` is None, and `finished` False, while no end has been recorded."""

    path: Path
    name: str
    description: Mapping[str, Any]  # run.json, with whatever else it holds
    configuration: str | None  # the text of config.yaml
    settings: Mapping[str, str]  # what it says, flat: {"training.lr": "0.004"}
    plain: Curve
    averages: tuple[Curve, ...]
    zigzag: Curve
    delivered: Curve
    snapshots: Mapping[str, int]  # of each average, at its last evaluation
    replacements: tuple[Replacement, ...]
    training: Training
    last_update: int
    seconds: Mapping[str, float] | None

    @property
    def replaces(self) -> bool:
        return self.description.get("mode") == "replace"

    @property
    def finished(self) -> bool:
        return self.seconds is not None

    @property
    def seed(self) -> Any:
        return self.description.get("seed")


def load_runs(directories: Sequence[str | Path]) -> tuple[Run, ...]:
    """The runs of these directories, in order; equal names are told apart by the end of their paths."""
    if not directories:
        raise UsageError("a report needs at least one run directory")
    paths = [Path(directory) for directory in directories]
    given = Counter(path.resolve() for path in paths)
    for path in paths:
        if given[path.resolve()] > 1:
            raise UsageError(f"{path} was given {given[path.resolve()]} times; name each run directory once")
    runs = [load_run(path) for path in paths]
    names = Counter(run.name for run in runs)
    return tuple(replace(run, name=f"{run.name} ({_tail(run, runs)})") if names[run.name] > 1 else run for run in runs)


def load_run(directory: str | Path) -> Run:
    """Read RUN/run.json, RUN/metrics.jsonl and RUN/config.yaml; of a run just begun the last two may lack."""
    path = Path(directory)
    description = _description(path)
    metrics = path / "metrics.jsonl"
    lines = list(records.read(metrics)) if metrics.exists() else []
    configuration = _text(path / "config.yaml")
    settings = flat_settings(path / "config.yaml", configuration)
    try:
        return _run(lines, path=path, description=description, configuration=configuration, settings=settings)
    except (KeyError, TypeError, ValueError, AttributeError) as bad:
        raise LawaError(
            f"{metrics}: a record lacks a field or holds one of the wrong type ({bad!r}); "
            "was it written by another version of lawa?"
        ) from bad


def _run(lines: list[dict[str, Any]], *, path: Path, description: dict[str, Any], **files: Any) -> Run:
    latest: dict[tuple[str, int], dict[str, Any]] = {}
    for line in lines:
        at = line["kind"], line["update"]
        latest[at] = _together(latest[at], line) if at in latest else line
    last_update = max((line["update"] for line in lines), default=0)

    def of_kind(kind: str) -> list[dict[str, Any]]:
        return sorted((line for (k, _), line in latest.items() if k == kind), key=lambda line: line["update"])

    evaluations = of_kind("evaluation")
    evaluated = {name: None for line in evaluations for name in line["losses"]}
    # In the order in which they were configured; they were first evaluated as their windows filled.
    names = [name for name in {**(description.get("averages") or {}), **evaluated} if name in evaluated]
    plain = _evaluated("plain", evaluations)
    replacements = tuple(_replacement(line) for line in of_kind("replacement"))
    end = latest.get(("end", last_update))
    return Run(
        path=path,
        name=str(description.get("name") or path.resolve().name),
        description=description,
        **files,
        plain=plain,
        averages=tuple(_evaluated(name, evaluations) for name in names if name != "plain"),
        zigzag=_zigzag(plain, replacements),
        delivered=_delivered(plain, replacements),
        snapshots={name: n for line in evaluations for name, n in (line.get("snapshots") or {}).items()},
        replacements=replacements,
        training=_training(of_kind("train")),
        last_update=last_update,
        seconds=None if end is None else {part: float(value) for part, value in end["seconds"].items()},
    )


def _together(line: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    """One record of two of a kind at the same update: the later one counts (a resumed run may repeat them), and what
    was evaluated by one of them alone stays (`lawa follow` writes a line for each average)."""
    if later["kind"] != "evaluation":
        return later
    both = {name: {**(line.get(name) or {}), **(later.get(name) or {})} for name in ("losses", "snapshots")}
    return {**line, **later, **both}


def _description(path: Path) -> dict[str, Any]:
    text = _text(path / "run.json")
    if text is None:
        what = "is not a run directory: it has no run.json" if path.is_dir() else "is not a directory"
        raise UsageError(f"{path} {what}; give one that `lawa train` or `lawa follow` wrote")
    try:
        description = json.loads(text)
    except ValueError as bad:
        raise LawaError(f"{path / 'run.json'} is not JSON ({bad})") from bad
    if not isinstance(description, dict):
        raise LawaError(f"{path / 'run.json'} holds {type(description).__name__}, not an object")
    return description


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _evaluated(name: str, evaluations: list[dict[str, Any]]) -> Curve:
    points = [(e["update"], e["tokens"], _loss(e["losses"][name])) for e in evaluations if name in e["losses"]]
    return _curve(name, points)


def _replacement(line: dict[str, Any]) -> Replacement:
    return Replacement(
        update=line["update"],
        tokens=line["tokens"],
        snapshots=line["snapshots"],
        applied=line["applied"],
        loss=None if line.get("loss") is None else float(line["loss"]),
    )


def _zigzag(plain: Curve, replacements: Sequence[Replacement]) -> Curve:
    """Before and after each replacement: two points at its update, in this order (the sort is stable)."""
    before = list(zip(plain.updates, plain.tokens, plain.losses, strict=True))
    after = [(r.update, r.tokens, r.loss) for r in replacements if r.applied and r.loss is not None]
    return _curve("zigzag", sorted(before + after, key=lambda point: point[0]))


def _delivered(plain: Curve, replacements: Sequence[Replacement]) -> Curve:
    """The loss of what the run would hand over at each update.

    Where a replacement was applied but not evaluated there is no such loss: the live weights' loss
    is that of weights which are gone.
    """
    points = {point[0]: point for point in zip(plain.updates, plain.tokens, plain.losses, strict=True)}
    for replacement in replacements:
        if replacement.applied:
            points.pop(replacement.update, None)
            if replacement.loss is not None:
                points[replacement.update] = (replacement.update, replacement.tokens, replacement.loss)
    return _curve("delivered", [points[update] for update in sorted(points)])


def _curve(name: str, points: Sequence[tuple[int, int, float]]) -> Curve:
    updates, tokens, losses = zip(*points, strict=True) if points else ((), (), ())
    return Curve(name, updates, tokens, losses)


def _training(lines: list[dict[str, Any]]) -> Training:
    return Training(
        updates=tuple(line["update"] for line in lines),
        tokens=tuple(line["tokens"] for line in lines),
        losses=tuple(_loss(line["loss"]) for line in lines),
        learning_rates=tuple(_loss(line["lr"]) for line in lines),
    )


def _loss(value: Any) -> float:
    """Some writers turn nan into null; both mean that there is no number."""
    return math.nan if value is None else float(value)


def _tail(run: Run, runs: Sequence[Run]) -> str:
    """The shortest end of the run's path that no other run of the same name has."""
    own = run.path.resolve().parts
    others = [other.path.resolve().parts for other in runs if other is not run and other.name == run.name]
    for depth in range(1, len(own)):
        if all(other[-depth:] != own[-depth:] for other in others):
            return "/".join(own[-depth:])
    return str(run.path)
