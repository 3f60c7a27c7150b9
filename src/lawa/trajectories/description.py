"""A trajectory as YAML tells it: every field checked, nothing unknown passed. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lawa.data.batches import KINDS
from lawa.errors import UsageError
from lawa.pretrain.sections.training import TrainingConfig
from lawa.settings import build, check_at_least, check_choices, required, setting
from lawa.trajectories.naming import ROUNDINGS, Naming
from lawa.trajectories.trajectory import Trajectory

FORMATS = ("neox", "olmo")  # of lawa.trajectories.optimizer_state


@dataclass(frozen=True, kw_only=True)
class Description:
    """Of one trajectory."""

    name: str = required("what it is called here")
    family: str | None = setting(None, "of similar runs; default: the name")
    repo: str = required("ORG/NAME on the hub that has the checkpoints")
    revisions: str = required("how they are called there: step{step}, ckpt_{number:03}, …")
    numbered_from: int = setting(1, "{number} of the checkpoint of update `interval`")
    rounding: str = setting("up", "of {tokens} to billions", choices=ROUNDINGS)
    named: dict[str, str] = setting({}, "update → revision, where the pattern does not hold")
    main: int | None = setting(None, "the update whose weights the branch main holds")
    interval: int = required("updates from one checkpoint to the next")
    steps: list[str] | None = setting(None, "updates with a checkpoint, or A:B:S; default: every interval up to total")
    total: int = required("updates of the whole run")
    batch: int = setting(0, "sequences an update; 0: not known")
    context: int = setting(0, "tokens a sequence; 0: not known")
    vocab_size: int = setting(0, "rows of the embedding; 0: not known")
    tokenizer: str | None = setting(None, "a name on the hub, or a folder; default: the repo")
    weights: str | None = setting(None, "formats and dtypes, in words")
    training: dict[str, Any] = setting({}, "settings of lawa train as the run used them: lr, schedule, warmup, …")
    data: dict[str, Any] | None = setting(None, "kind, repo and files of the batches in their order")
    optimizer: dict[str, Any] | None = setting(None, "where the optimizer's states are: repo, format, revisions, steps")
    bad: dict[str, str] = setting({}, "updates (A:B:S, and commas) → why their checkpoints are wrong")
    same: list[list[str]] = setting([], "groups of revisions whose weights are rightly equal")
    notes: list[str] = setting([], "in words")

    def __post_init__(self) -> None:
        check_choices(self, "trajectory")
        check_at_least(self, "trajectory", 1, "interval", "total")
        check_at_least(self, "trajectory", 0, "batch", "context", "vocab_size", "numbered_from", "main")


@dataclass(frozen=True, kw_only=True)
class States:
    """Of the optimizer: where they are."""

    repo: str | None = setting(None, "ORG/NAME on the hub")
    url: str | None = setting(None, "where they are elsewhere, with {step}")
    format: str = required("of their files, neox or olmo")
    revisions: str = setting("step{step}", "of the repo")
    steps: list[str] | None = setting(None, "updates whose states are there, or all; default: not known")

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise UsageError(f"optimizer.format={self.format!r} must be one of {', '.join(FORMATS)}")
        if (self.repo is None) == (self.url is None):
            raise UsageError("optimizer needs either a repo or a url")


def trajectory(values: Mapping[str, Any]) -> Trajectory:
    """From the fields of a `Description`. UsageError names the one that is wrong."""
    told: Description = build(Description, values)
    steps = _ascending(_every("steps", told.steps)) if told.steps else _regular(told)
    if outside := [step for step in steps if not 0 <= step <= told.total]:
        raise UsageError(f"steps holds {outside[0]}, beyond total={told.total}; the run's updates are 1 … total")
    named = {step: name for key, name in told.named.items() for step in _updates("named", key)}
    return Trajectory(
        name=told.name,
        family=told.family or told.name,
        repo=told.repo,
        naming=Naming(
            pattern=told.revisions, interval=told.interval, numbered_from=told.numbered_from,
            tokens=told.batch * told.context, rounding=told.rounding, named=named,
        ),
        interval=told.interval,
        steps=steps,
        main=told.main,
        total=told.total,
        batch=told.batch,
        context=told.context,
        vocab_size=told.vocab_size,
        tokenizer=told.tokenizer or told.repo,
        weights=told.weights,
        training=_training(told),
        data=_data(told.data),
        optimizer=_optimizer(told.optimizer, steps),
        bad={step: why for key, why in told.bad.items() for step in _updates("bad", key)},
        same=told.same,
        notes=told.notes,
    )  # fmt: skip


def _training(told: Description) -> dict[str, Any]:
    if not told.training:
        return {}
    if again := next((name for name in ("updates", "batch") if name in told.training), None):
        raise UsageError(f"training.{again} is told beside training, as {'total' if again == 'updates' else again}")
    settings = {"updates": told.total, "batch": told.batch, **told.training}
    checked = dataclasses.asdict(build(TrainingConfig, settings, "training"))
    return {name: checked[name] for name in settings}  # what is told, and no defaults


def _data(values: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if values is None:
        return None
    if values.get("kind") not in KINDS:
        raise UsageError(f"data.kind={values.get('kind')!r} must be one of {', '.join(KINDS)}")
    return {name: _files(name, value) for name, value in values.items()}


def _files(name: str, value: Any) -> Any:
    """{"pattern": "train_{:03}.jsonl", "count": 360} as the names that it stands for, from 0 on."""
    if not isinstance(value, Mapping):
        return value
    if set(value) != {"pattern", "count"}:
        return {key: _files(f"{name}.{key}", below) for key, below in value.items()}
    try:
        return [value["pattern"].format(i) for i in range(value["count"])]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        raise UsageError(
            f"data.{name} must be names of files, or their pattern and count, as {{pattern: 'part-{{:05}}.bin', "
            f"count: 21}}, not {dict(value)!r}"
        ) from None


def _optimizer(values: Mapping[str, Any] | None, steps: Sequence[int]) -> dict[str, Any] | None:
    if values is None:
        return None
    states: States = build(States, values, "optimizer")
    told = states.steps if states.steps in (None, ["all"]) else _ascending(_every("optimizer.steps", states.steps))
    return {**dataclasses.asdict(states), "steps": tuple(steps) if told == ["all"] else told}


def _regular(told: Description) -> range:
    """Every interval up to the end."""
    return range(told.interval, told.total + 1, told.interval)


def _every(name: str, keys: Iterable[str]) -> list[int]:
    return [step for key in keys for step in _updates(name, key)]


def _ascending(steps: list[int]) -> tuple[int, ...]:
    return tuple(sorted(set(steps)))


def _updates(name: str, key: str) -> list[int]:
    """Of "0, 1, 1000:53000:1000": both ends are meant.

    >>> _updates("steps", "0, 4:8:2")
    [0, 4, 6, 8]
    """
    found: list[int] = []
    for part in key.split(","):
        try:
            first, *rest = (int(number) for number in part.split(":"))
            last, spacing = rest if rest else (first, 1)
            found += range(first, last + 1, spacing)
        except ValueError:
            raise UsageError(f"{name} holds {part.strip()!r}, and not updates: N, or A:B:S with both ends") from None
    return found
