"""From what was asked for to a plan: found, fetched, looked at, matched and laid out. Writes no output. No torch
but for what a format needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lawa.checkpoints import formats, hub
from lawa.checkpoints.catalog import Catalog
from lawa.checkpoints.formats import Format
from lawa.checkpoints.formats.form import Scratch
from lawa.checkpoints.layouts.transformers5 import names_in_files
from lawa.checkpoints.select import Found, Selection, resolve, uneven
from lawa.errors import UsageError
from lawa.offline import duplicates
from lawa.offline.job import root_of
from lawa.offline.plan import Mean, Plan, make_plan
from lawa.offline.policy import Policy, match
from lawa.offline.windows import Windows, used
from lawa.records import read_json

Progress = Callable[[str, int, int], None]  # (what is done, how much of it, of how much)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is averaged, and where to.

    accumulate, out_dtype, shard_bytes   see plan.make_plan
    overwrite   outputs may exist
    offline     of the hub, only what is in its cache
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
    offline: bool = False

    def __post_init__(self) -> None:
        if self.output.name in ("", ".."):
            raise UsageError(f"output={str(self.output)!r} must name a new directory, as …/average")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """
    found      the checkpoints that are read, oldest first
    means      what is made of them, by index
    pinned     those that come from the hub
    forms      of what is on this machine, as found
    plan       None in a dry run where some input's tensors are not known: it is not fetched, or has no byte ranges
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
    repos = list(dict.fromkeys(one.repo for one in found if one.repo))
    pinned = dict(zip(repos, hub.pin_all(repos, offline=asked.offline), strict=True))
    found = _fetched(found, pinned, progress, dry=scratch is None)
    forms = [formats.look(one.path) if one.path else None for one in found]
    plan = _plan(asked, found, forms, means, scratch, progress)
    return Prepared(
        found=found,
        means=means,
        pinned=pinned,
        forms=forms,
        plan=plan,
        equal=duplicates.find(plan.catalogs) if plan and len(found) > 1 else [],
        notes=notes,
        warnings=list(_warnings(asked, found)),
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
        return None
    catalogs = []
    for one in found:
        assert one.path is not None  # fetched, or no plan is made
        try:
            catalogs.append(_named(formats.catalog(one.path, label=one.label, scratch=scratch or _refuse)))
        except _WouldWrite:
            return None
        progress("reading", len(catalogs), len(found))
    return make_plan(
        catalogs,
        match(catalogs, asked.policy),
        means,
        accumulate=asked.accumulate,
        out_dtype=asked.out_dtype,
        shard_bytes=asked.shard_bytes,
    )


def _named(catalog: Catalog) -> Catalog:
    """With the names that transformers writes, so that formats can be mixed and outputs are as it writes them."""
    config = catalog.directory / "config.json" if catalog.directory else None
    model = read_json(config).get("model_type") if config and config.is_file() else None
    names = names_in_files(model, catalog.tensors)
    return replace(catalog, tensors={names[name]: stored for name, stored in catalog.tensors.items()})


class _WouldWrite(Exception):
    """A dry run has come to an input that is put together in scratch files."""


def _refuse() -> Path:
    raise _WouldWrite


def _warnings(asked: Asked, found: Sequence[Found]) -> Iterator[str]:
    counted = asked.windows.sizes is not None or asked.selection.last is not None
    if counted and not asked.windows.rolling and (gap := uneven(found)):
        yield f"the checkpoints are not evenly spaced ({gap[1]} comes after {gap[0]}); windows count checkpoints"
