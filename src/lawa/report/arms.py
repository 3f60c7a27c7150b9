"""What a report compares: the baseline, every other arm against it, and what a reader must be told.

The baseline is the plain curve of the first run that does not replace its weights. Every run has an
arm for what it would hand over, and one for each average it evaluated.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lawa.report.compare import Comparison, compare, first_reached
from lawa.report.runs import Curve, Run


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One line of the table and of the pictures. `comparison` is None for the baseline, and where
    `incomparable` says why its losses must not be subtracted from the baseline's."""

    label: str
    what: str
    run: Run
    average: str | None = None  # None: the weights the run trains
    curve: Curve  # at most one loss an update
    zigzag: Curve | None = None  # of a run that replaces
    snapshots: int | None = None
    secondary: bool = False  # an average along a run that replaces: for the table, too much for a picture
    comparison: Comparison | None = None
    incomparable: str | None = None

    @property
    def final_update(self) -> int | None:
        return self.curve.updates[-1] if self.curve.updates else None

    @property
    def final_loss(self) -> float | None:
        """nan or inf if the arm diverged; None before its first evaluation."""
        return self.curve.losses[-1] if self.curve.losses else None

    @property
    def diverged(self) -> bool:
        return self.final_loss is not None and not math.isfinite(self.final_loss)


@dataclass(frozen=True, kw_only=True)
class Findings:
    """`arms[0]` is the baseline. `notes` are sentences that belong next to the numbers."""

    runs: tuple[Run, ...]
    arms: tuple[Arm, ...]
    notes: tuple[str, ...]

    @property
    def baseline(self) -> Arm:
        return self.arms[0]

    @property
    def best(self) -> Arm | None:
        """The arm with the largest gain at the end, though it may be a loss; None if there is none to compare."""
        ends = [(arm.comparison.gain, arm) for arm in self.arms if arm.comparison and arm.comparison.gain is not None]
        return max(ends, key=lambda end: end[0])[1] if ends else None

    def shows(self, arm: Arm) -> bool:
        """Whether a picture has room for the arm: the best one is always shown."""
        return not arm.secondary or arm is self.best

    @property
    def shown(self) -> list[Arm]:
        return [arm for arm in self.arms if self.shows(arm)]


def find(runs: Sequence[Run]) -> Findings:
    """Choose the baseline, label the arms and compare each with the baseline."""
    first = next((run for run in runs if not run.replaces), runs[0])
    # Where every run replaces, the live weights before each replacement are the nearest to plain.
    name, what = ("live weights", "before each replacement") if first.replaces else ("plain", "live weights")
    baseline = Arm(label=name, what=what, run=first, curve=first.plain)
    others = [_delivering(first)] if first.replaces else []
    others += _averages(first, prefix="", secondary=False)
    for run in runs:
        if run is not first:
            others += [_delivering(run), *_averages(run, prefix=f"{run.name} · ", secondary=run.replaces)]
    others.sort(key=lambda arm: arm.secondary)
    arms = [baseline, *(_compared(arm, baseline) for arm in others)]
    labels = Counter(arm.label for arm in arms)
    arms = [replace(a, label=f"{a.label} of {a.run.name}") if labels[a.label] > 1 else a for a in arms]
    return Findings(runs=tuple(runs), arms=tuple(arms), notes=tuple(_notes(runs, arms)))


def _delivering(run: Run) -> Arm:
    if not run.replaces:
        return Arm(label=run.name, what="live weights", run=run, curve=run.plain)
    applied = [replacement for replacement in run.replacements if replacement.applied]
    by = run.description.get("replaced_with") or "an average"
    window = run.description.get("after_replace")
    return Arm(
        label=run.name,
        what=f"weights replaced with {by} {len(applied)}×" + (f", window: {window}" if window else ""),
        run=run,
        curve=run.delivered,
        zigzag=run.zigzag,
        snapshots=applied[-1].snapshots if applied else None,
    )


def _averages(run: Run, *, prefix: str, secondary: bool) -> list[Arm]:
    """An average that was only ever evaluated where it became the model's weights is no arm of its own."""
    specifications = run.description.get("averages") or {}
    replaced_at = {r.update for r in run.replacements if r.applied and r.loss is not None}
    wholly = run.description.get("strength", 1.0) == 1.0
    return [
        Arm(
            label=f"{prefix}{average.name}",
            what=str(specifications.get(average.name, "average")),
            run=run,
            average=average.name,
            curve=average,
            snapshots=run.snapshots.get(average.name),
            secondary=secondary,
        )
        for average in run.averages
        if not (wholly and average.name == run.description.get("replaced_with"))
        or not replaced_at.issuperset(average.updates)
    ]


def _compared(arm: Arm, baseline: Arm) -> Arm:
    reason = _incomparable(arm.run, baseline.run)
    if reason:
        return replace(arm, incomparable=reason)
    return replace(arm, comparison=compare(arm.curve, baseline.curve))


def _incomparable(run: Run, baseline: Run) -> str | None:
    """Why losses of these runs must not be subtracted.

    Losses over other text, other sequences or another context say nothing about each other, and
    updates of another size are other amounts of training. The report goes on, because the curves are
    still worth seeing, and because only a reader can judge whether a data record differs in substance.
    """
    for what, key, own, its in (
        ("data", "data", run.description, baseline.description),
        ("number of tokens per update", "tokens_per_update", run.description, baseline.description),
        ("context", "data.context", run.settings, baseline.settings),
        ("number of evaluated sequences", "evaluation.sequences", run.settings, baseline.settings),
    ):
        mine, other = own.get(key), its.get(key)
        if mine is not None and other is not None and mine != other:
            return f"its {what} differs from that of {baseline.name}{_where(mine, other)}"
    return None


def _where(own: object, its: object) -> str:
    if isinstance(own, dict) and isinstance(its, dict):
        keys = [str(key) for key in sorted({*own, *its}, key=str) if own.get(key) != its.get(key)]
        return f" (in {', '.join(keys)})"
    return f" ({own} against {its})"


def _notes(runs: Sequence[Run], arms: Sequence[Arm]) -> list[str]:
    baseline = arms[0]
    notes = []
    if baseline.run.replaces:
        notes.append(
            "Every run replaces its weights, so there is no plain training to compare with: the baseline is "
            f"the live weights of {baseline.run.name}, before each replacement."
        )
    for run in runs:
        notes += _notes_on(run)
        reason = _incomparable(run, baseline.run)
        if reason:
            notes.append(f"{run.name} is not compared with {baseline.label}: {reason}.")
    seeds = {str(run.seed) for run in runs}
    if len(seeds) > 1:
        notes.append(
            f"The runs have different seeds ({', '.join(sorted(seeds))}): a gain between two of them holds the "
            "difference between seeds too."
        )
    diverged = [f"{arm.label} ({arm.final_loss} at update {arm.final_update})" for arm in arms if arm.diverged]
    if diverged:
        notes.append(f"Diverged: {', '.join(diverged)}.")
    notes += _notes_on_ends(arms)
    return notes


def _notes_on_ends(arms: Sequence[Arm]) -> list[str]:
    """Where final losses, or the updates until they are reached, mean less than they seem to."""
    baseline, notes = arms[0], []
    reached = first_reached(baseline.curve, baseline.curve.losses[-1]) if baseline.curve.losses else None
    # By more than a twentieth of the run: at the end of any run, one evaluation is as good as the next.
    if reached is not None and baseline.final_update and reached < 0.95 * baseline.final_update:
        notes.append(
            f"{baseline.label} itself first had its final loss at update {reached:.0f}, not at "
            f"{baseline.final_update}: updates saved are partly the noise of its curve."
        )
    ends: dict[int, list[str]] = {}
    for arm in arms:
        if arm.comparison and arm.final_update and baseline.final_update not in (None, arm.final_update):
            ends.setdefault(arm.final_update, []).append(arm.label)
    for update, labels in ends.items():
        notes.append(
            f"{', '.join(labels)}: last evaluated at update {update}, but {baseline.label} at "
            f"{baseline.final_update}, so the final losses are not after the same training."
        )
    return notes


def _notes_on(run: Run) -> list[str]:
    notes = []
    if not run.finished:
        planned = run.description.get("updates")
        of = f" of {planned}" if planned else ""
        notes.append(f"{run.name} is unfinished: its records reach update {run.last_update}{of}.")
    if run.training.losses and not math.isfinite(run.training.losses[-1]):
        notes.append(
            f"The training loss of {run.name} was {run.training.losses[-1]} at update {run.training.updates[-1]}."
        )
    if not run.plain.updates:
        notes.append(f"{run.name} has no evaluation yet.")
    skipped = sum(not replacement.applied for replacement in run.replacements)
    if skipped:
        of = f"{skipped} of {len(run.replacements)}"
        notes.append(f"{run.name} skipped {of} replacements, because the average was not finite.")
    last = next((r for r in reversed(run.replacements) if r.applied), None)
    evaluated = run.delivered.updates[-1] if run.delivered.updates else 0
    if last and last.loss is None and last.update > evaluated:
        notes.append(
            f"{run.name} was not evaluated after its last replacement, at update {last.update}: what it hands "
            f"over was last evaluated at update {evaluated}."
        )
    return notes
