"""Which checkpoints are meant: paths, folders of checkpoints and repos on the hub as one ordered list. No torch.

    a checkpoint           a file, or a directory of any format            taken as it is named
    a trajectory           a run of lawa train, a trainer's output folder  its checkpoints by step, of which
                           with checkpoint-N, stepN, iter_0000N, …         steps, last and before select
    ORG/NAME[@REVISION]    a repo on the hub; several of its revisions     both
                           where steps, last or before select, or
                           REVISION has a *

Where only checkpoints are named and something is to be selected, they are taken as one trajectory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import pairwise
from numbers import Integral
from pathlib import Path

from lawa.checkpoints import hub
from lawa.checkpoints.catalog import WEIGHTS
from lawa.checkpoints.hub import Repo
from lawa.checkpoints.publish import refuse_outside
from lawa.errors import LawaError, UsageError

Steps = str | Sequence[int]

# What trainers call their checkpoints: step1000, global_step5000, stage1-step1000-tokens5B, step-480k-token-1007B,
# iter_0000123, epoch=1-step=1000.ckpt; where none of these is there, checkpoint-500, ckpt_000, ckpt_1000.pt.
_NUMBERS = (
    re.compile(r"(?:^|[^a-z])(?:global_?step|step|iter|iteration|update)s?[-_=]?(\d+)(k?)(?![a-z\d])", re.IGNORECASE),
    re.compile(r"(?:^|[^a-z])(?:checkpoint|ckpt)[-_=]?(\d+)(k?)(?![a-z\d])", re.IGNORECASE),
)
_SHARD = re.compile(r"-of-\d+")  # checkpoint-00001-of-00002.bin is a part of one
_FILES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
_UNFINISHED = (".", "tmp-")  # what is being written: .checkpoint-500.partial, tmp-checkpoint-500
_NAMED = 5  # steps that a message lists


@dataclass(frozen=True, kw_only=True)
class Found:
    """A checkpoint that is meant.

    label  what messages call it: its path, or ORG/NAME@REVISION; once fetched with its commit
    step   the update in its name, if any
    path   None for one on the hub until it is fetched
    repo   where it is on the hub
    """

    label: str
    step: int | None
    path: Path | None = None
    repo: Repo | None = None


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which checkpoints of a trajectory are taken; all of them where nothing is given.

    steps   "A:B:S": A, A + S, … up to and with B, all of which must be there; "A:B": those that are there between
            them; "A,B,C" or a sequence: these
    before  those of smaller steps
    last    the last so many of what is left
    """

    steps: Steps | None = None
    last: int | None = None
    before: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("last", self.last), ("before", self.before)):
            if not isinstance(value, int | None):
                raise UsageError(f"{name}={value!r} must be a whole number")
        if self.last is not None and self.last < 1:
            raise UsageError(f"last={self.last} must be at least 1")
        wanted(self.steps)  # raises where it is no such thing

    @property
    def given(self) -> bool:
        return any(value is not None for value in (self.steps, self.last, self.before))

    def of(self, found: Sequence[Found], where: str) -> list[Found]:
        """The selected ones among a trajectory's, in the order of their steps. LawaError naming steps that are not."""
        exact, inside = wanted(self.steps)
        have = [one.step for one in found]
        there = set(have)
        if (missing := next((step for step in exact or () if step not in there), None)) is not None:
            raise LawaError(f"{where} has no checkpoint of step {missing}; it has {_some(have)}")
        chosen = [
            one
            for one in found
            if one.step is not None
            and (exact is None or one.step in exact)
            and inside(one.step)
            and (self.before is None or one.step < self.before)
        ]
        if not chosen:
            raise LawaError(f"{where} has no checkpoint that was asked for; it has {_some(have)}")
        if self.last is not None and len(chosen) < self.last:
            raise LawaError(f"{where} has {len(chosen)} checkpoints to take the last {self.last} of; ask for fewer")
        return chosen if self.last is None else chosen[-self.last :]


def resolve(
    inputs: Iterable[str | Path], selection: Selection, *, trajectory: bool = False, offline: bool = False
) -> list[Found]:
    """The checkpoints that are meant: explicit ones in the order given, those of trajectories by step.

    trajectory  whether they are to be ordered by step whatever is named, as windows that roll along them need
    offline     of the hub, only what is in its cache

    Raises UsageError for what cannot be meant, LawaError for what is not there.
    """
    asked = trajectory or selection.given
    sources = [_source(given, asked=asked, offline=offline) for given in inputs]
    if not sources:
        raise UsageError("no input was named; give checkpoints, a run's directory, or ORG/NAME@REVISION on the hub")
    if trajectory and len(sources) > 1 and any(isinstance(source, _Trajectory) for source in sources):
        raise UsageError("windows roll along one trajectory; name one run, or one run's checkpoints")
    explicit = [source for source in sources if isinstance(source, Found)]
    if asked and len(explicit) == len(sources):
        named = " and ".join(one.label for one in explicit[:2]) + (", …" if explicit[2:] else "")
        return selection.of(_by_step(explicit, named), named)
    chosen: list[Found] = []
    for source in sources:
        chosen += [source] if isinstance(source, Found) else selection.of(source.checkpoints, source.where)
    return chosen


def step_of(name: str) -> int | None:
    """The update that a checkpoint's name tells, if any.

    >>> step_of("stage1-step1000-tokens5B"), step_of("checkpoint-500"), step_of("final")
    (1000, 500, None)
    """
    for pattern in _NUMBERS if not _SHARD.search(name) else ():
        if found := pattern.findall(name):
            number, thousand = found[-1]
            return int(number) * (1000 if thousand else 1)
    return None


def checkpoints_in(folder: Path) -> list[Found]:
    """What lies in `folder`, or its `checkpoints`, under a name that tells a step; by step, no unfinished ones."""
    inside = folder / "checkpoints"
    folder = inside if inside.is_dir() else folder
    found = [
        Found(label=str(entry), step=step, path=entry)
        for entry in folder.iterdir()
        if (step := step_of(entry.name)) is not None
        and not entry.name.startswith(_UNFINISHED)
        and (entry.suffix in _FILES if entry.is_file() else entry.is_dir())
    ]
    # A trainer that cannot gather ZeRO-3's weights saves its last checkpoint once more: RUN/global_step1000.
    again = {one.path for one in found if one.path == latest_of(folder)}
    others = {one.step for one in found if one.path not in again}
    return _by_step([one for one in found if one.path not in again or one.step not in others], str(folder))


def has_weights(folder: Path) -> bool:
    """Whether transformers would load a model from it."""
    return any((folder / name).is_file() for name in WEIGHTS)


def is_one(folder: Path, inside: Sequence[Found]) -> bool:
    """Whether `folder` is one checkpoint though `checkpoints_in` finds some inside: as a trainer on DeepSpeed writes
    it, with `latest`, the only step that this names, and an export beside them or a step in its own name.

        checkpoint-500/model.safetensors  latest  global_step500/
    """
    return (
        latest_of(folder) is not None
        and {one.path for one in inside} == {latest_of(folder)}
        and (has_weights(folder) or step_of(folder.name) is not None)
    )


def latest_of(folder: Path) -> Path | None:
    """DeepSpeed's folder of masters in the checkpoint `folder`, which its file latest names."""
    latest = folder / "latest"
    if not latest.is_file():
        return None
    tag = latest.read_text(encoding="utf-8", errors="replace").strip()
    refuse_outside(tag, latest)
    return folder / tag


def uneven(found: Sequence[Found]) -> tuple[int, int] | None:
    """The first two neighbours that lie further apart, or nearer, than the first two checkpoints do."""
    steps = [one.step for one in found if one.step is not None]
    return next(((a, b) for a, b in pairwise(steps) if b - a != steps[1] - steps[0]), None)


def wanted(steps: Steps | None) -> tuple[Collection[int] | None, Callable[[int], bool]]:
    """(the steps that must be there, ascending, if they are listed; whether another is inside what was asked for).

    A range stays one, however many steps it has.
    """

    def everything(step: int) -> bool:
        return True

    if steps is None:
        return None, everything
    if not isinstance(steps, str):
        return _listed(steps), everything
    try:
        if ":" not in steps:
            return _listed([int(step) for step in steps.split(",")]), everything
        first, last, *stride = (int(part) for part in steps.split(":"))
        listed = range(first, last + 1, *stride) if stride else None
    except (ValueError, TypeError):
        raise UsageError(f"steps={steps!r} is not A:B:S, A:B or A,B,… in updates, as 1000:10000:1000") from None
    if last < first or (listed is not None and not listed):
        raise UsageError(f"steps={steps!r} holds no step: A is the first and B the last")
    return listed, lambda step: first <= step <= last


def _listed(steps: Sequence[int]) -> Collection[int]:
    if isinstance(steps, range):
        listed: Collection[int] = steps if steps.step > 0 else steps[::-1]
    elif isinstance(steps, Sequence) and all(isinstance(step, Integral) for step in steps):
        listed = dict.fromkeys(sorted(steps))
    else:
        raise UsageError(f"steps={steps!r} must be updates, as [1000, 2000], or text, as '1000:10000:1000'")
    if not listed:
        raise UsageError(f"steps={steps!r} holds no step")
    return listed


@dataclass(frozen=True)
class _Trajectory:
    where: str
    checkpoints: Sequence[Found]


def _source(given: str | Path, *, asked: bool, offline: bool) -> Found | _Trajectory:
    path = Path(given)
    if path.exists():
        return _of_path(path, asked=asked)
    repo = hub.parse(str(given))
    if repo is None:
        raise LawaError(f"{given} does not exist; name a checkpoint, a run's directory, or ORG/NAME@REVISION")
    hub.check_client(repo)
    pattern = repo.revision or ("*" if asked else None)
    if pattern is None or "*" not in pattern:
        return _on_hub(replace(repo, revision=pattern or "main"))
    names = [name for name in hub.revisions(repo, offline=offline) if fnmatchcase(name, pattern)]
    found = [one for name in names if (one := _on_hub(replace(repo, revision=name))).step is not None]
    where = f"{repo.name}@{repo.revision}" if repo.revision else repo.name
    if not found:
        raise LawaError(f"{where}: no branch or tag of its {len(names)} tells a step; name revisions as {where}@…")
    return _Trajectory(where, _by_step(found, where))


def _of_path(path: Path, *, asked: bool) -> Found | _Trajectory:
    explicit = Found(label=str(path), step=step_of(path.name), path=path)
    if path.is_file():
        return explicit
    found = checkpoints_in(path)
    if not found:
        if (path / "checkpoints").is_dir():
            raise LawaError(f"{path / 'checkpoints'} holds no checkpoint yet; wait for its first, or name another run")
        return explicit
    if is_one(path, found):
        return explicit
    if not asked and has_weights(path):
        raise UsageError(
            f"{path} is a checkpoint and holds {len(found)} others (step {_some([one.step for one in found])}); "
            f"--last {len(found)} averages those"
        )
    return _Trajectory(str(path), found)


def _on_hub(repo: Repo) -> Found:
    return Found(label=str(repo), step=step_of(repo.revision or ""), repo=repo)


def _by_step(found: Iterable[Found], where: str) -> list[Found]:
    """In the order of their steps; UsageError for one without a step, or two of the same."""
    known: dict[int, Found] = {}
    for one in found:
        if one.step is None:
            raise UsageError(f"{one.label} tells no step, and is to be selected by it; name it as …/step1000")
        if one.step in known:
            raise UsageError(f"{known[one.step].label} and {one.label} are both step {one.step} of {where}; name one")
        known[one.step] = one
    return [known[step] for step in sorted(known)]


def _some(steps: Sequence[int | None]) -> str:
    """The first of them in words."""
    listed = ", ".join(map(str, steps[:_NAMED]))
    return f"{listed}, … ({len(steps)} in all, up to {steps[-1]})" if len(steps) > _NAMED else listed or "none"
