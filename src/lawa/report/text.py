"""Numbers and sentences, the same on the page, in the picture and in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from lawa.report.arms import Arm, Findings
from lawa.report.runs import Run

NOTHING = "–"


def number(value: float | None, digits: int = 4) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 4) -> str:
    """With a true minus sign, and no sign on what rounds to zero."""
    if value is None:
        return NOTHING
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def whole(value: float | None) -> str:
    """Updates: 1200, and from five digits on grouped by thin spaces."""
    if value is None:
        return NOTHING
    text = f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.0f}"
    return text.replace(",", "\u2009").replace("-", "−")


def short(value: float) -> str:
    """1320000 → 1.32M."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:g}"


def cut(name: str, length: int) -> str:
    """Leave out the middle of a long name: its end tells arms of a run apart."""
    if len(name) <= length:
        return name
    end = (length - 1) // 2
    return f"{name[: length - 1 - end]}…{name[-end:]}"


def size(findings: Findings) -> str:
    """Model, training and number of runs, from the records: gpt_neox, 1.32M parameters · 1200 updates …"""
    run = findings.baseline.run
    model = run.description.get("model") or {}
    parameters = sorted({p for r in findings.runs if (p := _parameters(r)) is not None})
    parts = []
    if parameters:
        span = "–".join(short(p) for p in dict.fromkeys((parameters[0], parameters[-1])))
        parts.append(f"{model.get('architecture') or 'model'}, {span} parameters")
    updates = f"{whole(run.last_update)} updates"
    tokens = run.description.get("tokens_per_update")
    if isinstance(tokens, (int, float)):
        updates += f", {short(tokens * run.last_update)} tokens"
    parts.append(updates)
    seeds = sorted({str(r.seed) for r in findings.runs if r.seed is not None})
    parts.append("one run per arm" + (f", seed{'s' * (len(seeds) > 1)} {' and '.join(seeds)}" if seeds else ""))
    return " · ".join(parts)


def _parameters(run: Run) -> float | None:
    value = (run.description.get("model") or {}).get("parameters")
    return value if isinstance(value, (int, float)) else None


def headline(findings: Findings) -> str:
    """The result in one or two sentences."""
    baseline = findings.baseline
    if baseline.final_loss is None:
        return "There is nothing to compare yet: the baseline has no evaluation."
    start = (
        f"At update {whole(baseline.final_update)} the validation loss of {baseline.label} is "
        f"{number(baseline.final_loss)} nats per token."
    )
    arm, comparison = findings.best, findings.best and findings.best.comparison
    if arm is None or comparison is None or comparison.gain is None:
        return start
    gain, saved = comparison.gain, comparison.updates_saved
    if float(number(gain)) <= 0:
        apart = "level with it" if float(number(gain)) == 0 else f"{number(-gain)} above"
        return f"{start} No arm ends below it; the nearest, {arm.label}, ends {apart}."
    at = "" if arm.final_update == baseline.final_update else f" at update {whole(arm.final_update)}"
    found = f"{start} The lowest is that of {arm.label}{at}, {number(arm.final_loss)}: {number(gain)} lower"
    if saved is None or saved <= 0:
        return found + "."
    share = f"{saved / baseline.final_update:.0%}" if baseline.final_update else NOTHING
    return f"{found}, and it reached the final loss of {baseline.label} {whole(saved)} updates ({share}) earlier."


HEADINGS = ("arm", "final loss", "gain", "largest gain", "most ahead", "updates saved", "snapshots")


def _saved(arm: Arm, findings: Findings) -> str:
    """Updates saved, and their share of the baseline's: 312 (26%)."""
    total = findings.baseline.final_update
    if arm.comparison is None or not total:
        return NOTHING
    saved = arm.comparison.updates_saved
    return "not reached" if saved is None else f"{whole(saved)} ({saved / total:.0%})".replace("-", "−")


def _ahead(arm: Arm, findings: Findings) -> str:
    """By how many updates it led most, and when: 180 updates at 900."""
    most = arm.comparison.most_ahead if arm.comparison else None
    if most is None or arm is findings.baseline:
        return NOTHING
    return f"{whole(most.value)} updates at {whole(most.update)}"


def cells(arm: Arm, findings: Findings) -> tuple[str, ...]:
    """The table's line for an arm, under HEADINGS."""
    comparison = arm.comparison
    largest = comparison.largest_gain if comparison else None
    return (
        arm.label,
        number(arm.final_loss),
        "baseline" if arm is findings.baseline else signed(comparison.gain if comparison else None),
        NOTHING if largest is None else f"{signed(largest.value)} at {whole(largest.update)}",
        _ahead(arm, findings),
        _saved(arm, findings),
        NOTHING if arm.snapshots is None else str(arm.snapshots),
    )


def lines(rows: Sequence[Sequence[str]]) -> str:
    """Rows as aligned plain text: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
