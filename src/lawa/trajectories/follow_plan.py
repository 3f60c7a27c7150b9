"""What following a run takes, before any of it is done: which checkpoints, what is held, bytes, evaluations. No torch.

Windows lie on a grid: one of k with spacing s at step t covers t − (k−1)·s·N, …, t − s·N, t, where N is the distance of
the steps, and is whole where all of these are among the steps. While it rolls it spans s(k−1) + 1 checkpoints, each of
which is loaded once and held until no later window needs it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, pairwise, product

from lawa.averaging.coefficients import Spec, coefficients, is_uniform
from lawa.averaging.cost import readable
from lawa.errors import LawaError, UsageError
from lawa.offline.windows import Windows, family_name

PLAIN = "plain"
AHEAD = 2  # checkpoints fetched before they are needed, where the disk budget has room for them
Due = tuple[int, str]  # (step, PLAIN or a series' name)


@dataclass(frozen=True, kw_only=True)
class Series:
    """One average along the run.

    size          k, checkpoints that it covers
    spacing       s: every s-th of the steps
    coefficients  oldest first; None: uniform
    family        what they are called
    """

    name: str
    size: int
    spacing: int
    coefficients: tuple[float, ...] | None
    family: str

    @property
    def span(self) -> int:
        """Steps from its oldest checkpoint to its latest, both counted."""
        return self.spacing * (self.size - 1) + 1

    def inputs(self, step: int, interval: int) -> tuple[int, ...]:
        """The steps that it covers at `step`, oldest first."""
        return tuple(step - i * self.spacing * interval for i in reversed(range(self.size)))


def all_series(
    sizes: Sequence[int], spacings: Sequence[int] = (1,), families: Sequence[Spec] = ("uniform",)
) -> tuple[Series, ...]:
    """Every size with every spacing and family; UsageError for what cannot be had."""
    for spacing in spacings:
        Windows(sizes=sizes, spacing=spacing, families=families)  # its checks
    if again := next((one for one, times in Counter(spacings).items() if times > 1), None):
        raise UsageError(f"spacing={again!r} was given twice")
    found: dict[str, Series] = {}
    for spacing, size, family in product(spacings, sizes, families):
        one = _series(size, spacing, family)
        name = _free(one.name, found)
        found[name] = replace(one, name=name)
    return tuple(found.values())


def interval_of(steps: Sequence[int]) -> int:
    """N: the commonest distance of neighbours, of several the smallest; UsageError for a single step."""
    if len(steps) < 2:
        raise UsageError(f"there is one step ({steps[0]}) and an average takes several; give --steps A:B:S")
    times = Counter(b - a for a, b in pairwise(steps))
    return min(times, key=lambda distance: (-times[distance], distance))


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What is done once a checkpoint is there.

    due      names evaluated: PLAIN, of series
    mapped   it is read from its file, which stays on disk, since the memory for snapshots is full
    dropped  snapshots, by step, that nothing later needs
    """

    step: int
    due: tuple[str, ...]
    mapped: bool
    dropped: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """
    stages  in the order of their steps
    ahead   how many checkpoints are fetched before they are needed
    held    most snapshots at once
    host    most bytes of snapshots in memory
    disk    most bytes of fetched checkpoints on disk; 0 where nothing is fetched
    loaded  bytes of all checkpoints that are loaded
    """

    stages: tuple[Stage, ...]
    ahead: int
    held: int
    host: int
    disk: int
    loaded: int

    @property
    def evaluations(self) -> int:
        return sum(len(stage.due) for stage in self.stages)


def due_evaluations(steps: Sequence[int], series: Sequence[Series], interval: int) -> dict[Due, tuple[int, ...]]:
    """{(step, name): the steps it is made of}, by step. UsageError for a series that is nowhere whole."""
    there = set(steps)
    found = {
        (step, one.name): inputs
        for step in steps
        for one in (Series(name=PLAIN, size=1, spacing=1, coefficients=None, family=""), *series)
        if there.issuperset(inputs := one.inputs(step, interval))
    }
    whole = {name for _, name in found}
    if lacking := next((one for one in series if one.name not in whole), None):
        raise UsageError(
            f"{lacking.name} spans {lacking.span} steps, {lacking.spacing * interval} updates apart, and nowhere are "
            f"all of them among the {len(steps)} steps; give more steps, a smaller window or a smaller spacing"
        )
    return found


def make_plan(
    due: Mapping[Due, tuple[int, ...]],
    nbytes: Mapping[int, int],
    *,
    host_bytes: int,
    disk_bytes: int | None = None,
    fetched: Collection[int] = (),
) -> Plan:
    """How to do the evaluations `due`, by step, with each checkpoint loaded once.

    nbytes      of each step's weights
    host_bytes  for snapshots in memory; what is beyond is read from its file
    disk_bytes  for fetched checkpoints, or None: any
    fetched     the steps that are fetched, and removed from disk when they are not needed any more

    Raises LawaError naming the smallest budget that would do.
    """
    stages, held, host = _stages(due, nbytes, host_bytes)
    on_disk = {step: nbytes[step] if step in fetched else 0 for step in nbytes}
    peaks = {ahead: _disk_peak(stages, on_disk, ahead) for ahead in range(AHEAD, -1, -1)}
    fits = (ahead for ahead, peak in peaks.items() if disk_bytes is None or peak <= disk_bytes)
    if (ahead := next(fits, None)) is None:
        _, _, everything = _stages(due, nbytes, None)
        more = f", or --host-bytes {everything} to hold all snapshots in memory" if host < everything else ""
        raise LawaError(
            f"--disk-budget {disk_bytes} ({readable(disk_bytes or 0)}) is too small: {peaks[0]} bytes of checkpoints "
            f"are on disk at once; give --disk-budget {peaks[0]}{more}, or smaller windows"
        )
    loaded = sum(nbytes[stage.step] for stage in stages)
    return Plan(stages=stages, ahead=ahead, held=held, host=host, disk=peaks[ahead], loaded=loaded)


def groups(due: Mapping[Due, tuple[int, ...]], most: int) -> list[dict[Due, tuple[int, ...]]]:
    """`due` cut into at most `most` runs of neighbouring steps of nearly equal length; independent of each other."""
    steps = list(dict.fromkeys(step for step, _ in due))
    number = min(most, len(steps))
    cuts = [len(steps) * i // number for i in range(number + 1)] if number else []
    return [
        {one: inputs for one, inputs in due.items() if one[0] in steps[first:last]} for first, last in pairwise(cuts)
    ]


def _stages(
    due: Mapping[Due, tuple[int, ...]], nbytes: Mapping[int, int], host_bytes: int | None
) -> tuple[tuple[Stage, ...], int, int]:
    """(the stages, most snapshots at once, most bytes of them in memory)."""
    last = {}  # of each step the last one that needs it
    for (step, _), inputs in due.items():
        last |= {one: max(step, last.get(one, step)) for one in inputs}
    names: dict[int, list[str]] = {}
    for step, name in due:
        names.setdefault(step, []).append(name)
    stages, held, most, in_memory, peak = [], set(), 0, {}, 0
    for step in sorted(last):
        mapped = host_bytes is not None and sum(in_memory.values()) + nbytes[step] > host_bytes
        held.add(step)
        if not mapped:
            in_memory[step] = nbytes[step]
        most, peak = max(most, len(held)), max(peak, sum(in_memory.values()))
        dropped = tuple(sorted(one for one in held if last[one] <= step))
        held.difference_update(dropped)
        in_memory = {one: size for one, size in in_memory.items() if one in held}
        stages.append(Stage(step=step, due=tuple(names.get(step, ())), mapped=mapped, dropped=dropped))
    return tuple(stages), most, peak


def _disk_peak(stages: Sequence[Stage], on_disk: Mapping[int, int], ahead: int) -> int:
    """Most bytes at once: what is mapped, the one being loaded, and those fetched ahead of it."""
    mapped, peak = set(), 0
    for at, stage in enumerate(stages):
        coming = (one.step for one in stages[at : at + ahead + 1])
        peak = max(peak, sum(on_disk[step] for step in {*mapped, *coming}))
        if stage.mapped:
            mapped.add(stage.step)
        mapped.difference_update(stage.dropped)
    return peak


def _series(size: int, spacing: int, family: Spec) -> Series:
    try:
        weights = None if is_uniform(family) else coefficients(family, size)
    except LawaError as wrong:
        raise UsageError(str(wrong)) from None
    called = family_name(family)
    parts = [f"window{size}", *([f"spacing{spacing}"] if spacing > 1 else []), *([called] if weights else [])]
    return Series(name="-".join(parts), size=size, spacing=spacing, coefficients=weights, family=called)


def _free(name: str, taken: Collection[str]) -> str:
    """Lists of numbers are called alike, and numbered."""
    return next(one for number in count(1) if (one := f"{name}-{number}" if number > 1 else name) not in taken)
