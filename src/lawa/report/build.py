"""Build a report from run directories: a page, a picture and a summary for machines."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lawa.errors import UsageError
from lawa.report.arms import Arm, Findings, find
from lawa.report.page import page
from lawa.report.picture import picture
from lawa.report.runs import load_runs
from lawa.report.text import HEADINGS, cells, headline, lines


@dataclass(frozen=True, kw_only=True)
class Report:
    """The files that were written, and what they say."""

    page: Path
    picture: Path
    summary: Path
    findings: Findings


def build(run_dirs: Sequence[str | Path], output: str | Path) -> Report:
    """Write OUTPUT/report.html, OUTPUT/losses.png and OUTPUT/summary.json, each whole or not at all.

    The same records give the same bytes. A directory that is no run, or records that cannot be read,
    raise LawaError before anything is written.
    """
    output = Path(output)
    findings = find(load_runs(run_dirs))
    png = picture(findings)
    html = page(findings, png)
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output} is a file; --output names the directory to write the report into")
    output.mkdir(parents=True, exist_ok=True)
    summary = json.dumps(_summary(findings), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return Report(
        page=_write(output / "report.html", html.encode()),
        picture=_write(output / "losses.png", png),
        summary=_write(output / "summary.json", summary.encode()),
        findings=findings,
    )


def table(report: Report) -> str:
    """The result, the table and the notes as plain text."""
    findings = report.findings
    rows = lines([HEADINGS, *(cells(arm, findings) for arm in findings.arms)])
    notes = "\n".join(f"Note: {note}" for note in findings.notes)
    return "\n\n".join(filter(None, (headline(findings), rows, notes)))


def _summary(findings: Findings) -> dict[str, Any]:
    """Losses in nats per token, None where they are not finite; the rest in updates."""
    return {
        "headline": headline(findings),
        "baseline": findings.baseline.label,
        "arms": [_arm(arm) for arm in findings.arms],
        "runs": [
            {
                "name": run.name,
                "path": str(run.path),
                "seed": run.seed,
                "last_update": run.last_update,
                "finished": run.finished,
                "seconds": run.seconds,
            }
            for run in findings.runs
        ],
        "notes": findings.notes,
    }


def _arm(arm: Arm) -> dict[str, Any]:
    comparison = arm.comparison
    largest = comparison.largest_gain if comparison else None
    most = comparison.most_ahead if comparison else None
    finite = arm.final_loss is not None and math.isfinite(arm.final_loss)
    return {
        "label": arm.label,
        "what": arm.what,
        "run": arm.run.name,
        "average": arm.average,
        "snapshots": arm.snapshots,
        "final_update": arm.final_update,
        "final_loss": arm.final_loss if finite else None,
        "diverged": arm.diverged,
        "gain": comparison.gain if comparison else None,
        "largest_gain": largest.value if largest else None,
        "largest_gain_update": largest.update if largest else None,
        "updates_saved": comparison.updates_saved if comparison else None,
        "most_ahead": most.value if most else None,
        "most_ahead_update": most.update if most else None,
        "ahead": comparison.ahead if comparison else None,
        "incomparable": arm.incomparable,
    }


def _write(path: Path, content: bytes) -> Path:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)
    return path
