"""From what was asked for to a plan: found, fetched, looked at, matched and laid out. Writes no output. No torch
but for what a format needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

from lawa.checkpoints import formats, hub
from lawa.checkpoints.formats import Format
from lawa.checkpoints.formats.form import Scratch
from lawa.checkpoints.named import named
from lawa.checkpoints.select import Found, Selection, latest_of, resolve, uneven
from lawa.errors import UsageError
from lawa.offline import duplicates
from lawa.offline.job import root_of
from lawa.offline.plan import Mean, Plan, make_plan
from lawa.offline.policy import Policy, match
from lawa.offline.scratch import check_room
from lawa.offline.windows import Windows, used

Progress = Callable[[str, int, int], None]  # (what is done, how much of it, of how much)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is averaged, and where to.

    output             with a link followed, so that whoever works beside it finds one place
    accumulate, out_dtype, shard_bytes   see plan.make_plan
    overwrite          outputs may exist
    allow_duplicates   inputs with the same content are not looked for
    offline            of the hub, only what is in its cache
    """

    inputs: Sequence[str | Path]
    output: Path
    selection: Selection = field(default_factory=Selection)
    windows: Windows = field(default_factory=Windows)
    policy: Policy = field(default_factory=Policy)
    accumulate: str = "float32"
    out_dtype: str | None = None
    shard_bytes: int = 5 * 10**9
    overwrite: bool = False
    allow_duplicates: bool = False
    offline: bool = False

    def __post_init__(self) -> None:
        if self.output.name in ("", ".."):
            raise UsageError(f"output={str(self.output)!r} must name a new directory, as …/average")
        if self.output.is_symlink():
            object.__setattr__(self, "output", self.output.resolve())


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """
    found      the checkpoints that are read, oldest first
    means      what is made of them, by index
    pinned     those that come from the hub
    forms      of what is on this machine, as found
    plan       None in a dry run where some input's tensors are not known: it is not fetched, or has to be loaded whole
    equal      indexes of inputs with the same content
    notes      what a person wants to know; `warnings`: what may be a mistake
    """

    found: Sequence[Found]
    means: Sequence[Mean]
    pinned: dict[hub.Repo, hub.Pinned]
    forms: Sequence[Format | None]
    plan: Plan | None
    equal: Sequence[Sequence[int]]
    notes: Sequence[str]
    warnings: Sequence[str]


def prepare(asked: Asked, *, scratch: Scratch | None, progress: Progress) -> Prepared:
    """Everything before the first byte of an output.

    scratch  None for a dry run: nothing is fetched or written

    Raises UsageError for what cannot be meant, before anything is fetched; LawaError for checkpoints that are damaged,
    or do not belong together.
    """
    windows = asked.windows
    found = resolve(asked.inputs, asked.selection, trajectory=windows.rolling, offline=asked.offline)
    means, notes = windows.means(found)
    found, means = used(found, means)
    _check_output(asked, found, means)
    if len(found) == 1:
        notes.append(f"one input: the average is {found[0].label} itself")
    warnings = list(_warnings(asked, found))
    repos = list(dict.fromkeys(one.repo for one in found if one.repo))
    pinned = dict(zip(repos, hub.pin_all(repos, offline=asked.offline), strict=True))
    found = _fetched(found, pinned, progress, dry=scratch is None)
    forms = [formats.look(one.path) if one.path else None for one in found]
    notes += _exports(found, forms)
    plan = _plan(asked, found, forms, means, scratch, progress)
    compared = plan and len(found) > 1 and not asked.allow_duplicates
    if compared and scratch is None and any(form and form.name == "dcp" for form in forms):
        notes.append("whether inputs have the same content is seen when they are averaged")
        compared = False
    return Prepared(
        found=found,
        means=means,
        pinned=pinned,
        forms=forms,
        plan=plan,
        equal=duplicates.find(plan.catalogs) if plan and compared else [],
        notes=notes,
        warnings=warnings,
    )


def _check_output(asked: Asked, found: Sequence[Found], means: Sequence[Mean]) -> None:
    """Raise for an output that exists, that lies in an input, or that an input lies in."""
    begun = root_of(asked.output).exists()
    for target in (asked.output / mean.name for mean in means):
        if target.exists() and not asked.overwrite and not begun:
            raise UsageError(f"{target} exists already; choose another --output, or replace it with --overwrite")
    output = asked.output.resolve()
    for one in found:
        path = one.path.resolve() if one.path else None
        if path and output.is_relative_to(path):
            raise UsageError(f"{asked.output} lies in the input {one.label}; choose an --output outside of it")
        if path and path.is_relative_to(output):
            raise UsageError(f"the input {one.label} lies in {asked.output}; choose an --output without it")


def _fetched(
    found: Sequence[Found], pinned: dict[hub.Repo, hub.Pinned], progress: Progress, *, dry: bool
) -> list[Found]:
    """Those of the hub with their commit in their label and their place on this machine; a dry run fetches nothing."""
    there = 0

    def done(one: hub.Pinned) -> None:
        nonlocal there
        there += 1
        progress("fetching", there, len(pinned))

    known = {repo: one.cached for repo, one in pinned.items()}
    if pinned and not dry:
        known = dict(zip(pinned, hub.fetch_all(list(pinned.values()), done=done), strict=True))
    return [replace(one, path=known[one.repo], label=pinned[one.repo].label) if one.repo else one for one in found]


def _plan(
    asked: Asked,
    found: Sequence[Found],
    forms: Sequence[Format | None],
    means: Sequence[Mean],
    scratch: Scratch | None,
    progress: Progress,
) -> Plan | None:
    if scratch is None and any(form is None or form.whole for form in forms):
        return None  # before any is read
    catalogs = []
    for one in found:
        assert one.path is not None  # fetched, or no plan is made
        if scratch is None:
            catalog = formats.foreseen(one.path, label=one.label)
        else:
            catalog = formats.catalog(one.path, label=one.label, scratch=scratch)
        if catalog is None:
            return None
        catalogs.append(named(catalog))
        if scratch is not None:
            check_room(asked.output, catalogs, forms)
        progress("reading", len(catalogs), len(found))
    return make_plan(
        catalogs,
        match(catalogs, asked.policy),
        means,
        accumulate=asked.accumulate,
        out_dtype=asked.out_dtype,
        shard_bytes=asked.shard_bytes,
    )


def _exports(found: Sequence[Found], forms: Sequence[Format | None]) -> Iterator[str]:
    """A note where a trainer on DeepSpeed has written an export beside its masters; the first one tells it for all."""
    for one, form in zip(found, forms, strict=True):
        masters = latest_of(one.path) if form and form.name == "hf" and one.path else None
        if masters and masters in masters.parent.iterdir():
            yield f"{one.label} is averaged as it was exported; its fp32 masters are DeepSpeed's in {masters}"
            return


def _warnings(asked: Asked, found: Sequence[Found]) -> Iterator[str]:
    if back := _out_of_order(found):
        yield (
            f"step {back[1]} is named after step {back[0]}: what is named one by one keeps its order, oldest first, "
            "and the last one is taken as the latest"
        )
    counted = asked.windows.sizes is not None or asked.selection.last is not None
    if counted and not asked.windows.rolling and not back and (gap := uneven(found)):
        yield f"the checkpoints are not evenly spaced ({gap[1]} comes after {gap[0]}); windows count checkpoints"


def _out_of_order(found: Sequence[Found]) -> tuple[int, int] | None:
    """The first neighbours in one folder or repo of which the second is of a smaller step."""

    def home(one: Found) -> object:
        return one.repo.name if one.repo else one.path and one.path.parent

    for a, b in pairwise(found):
        if a.step is not None and b.step is not None and a.step > b.step and home(a) == home(b):
            return a.step, b.step
    return None
