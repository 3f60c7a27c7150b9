"""lawa report: a page and a picture from the records of runs."""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = "an HTML page and a picture from the records of runs"
DESCRIPTION = """Compare runs: OUTPUT/report.html (self-contained), losses.png and summary.json.

  lawa report RUN… --output DIR

The first run that replaces nothing is the baseline. Runs that are not finished are shown as far as they are."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="run directories of lawa train")
    parser.add_argument("--output", required=True, metavar="DIR", type=Path, help="where the report goes")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")


def run(given: argparse.Namespace) -> int:
    from lawa.report.build import build, table

    report = build(given.runs, given.output)
    if given.json:
        print(report.summary.read_text(encoding="utf-8"), end="")
    else:
        print(table(report))
        print(f"\npicture: {report.picture}\npage:    {report.page}")
    return 0
