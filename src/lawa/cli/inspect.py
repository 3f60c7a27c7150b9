"""lawa inspect: what a run or a checkpoint is, read from its files."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from lawa.errors import require

SUMMARY = "what a run or a checkpoint is, where it stands, what it costs"
DESCRIPTION = """Read a run of lawa train, or one checkpoint, from its files; nothing is changed.

  lawa inspect RUN             what it is, where it stands, its checkpoints and averages, what its windows cost
  lawa inspect CHECKPOINT      format, tensors, dtypes, bytes, manifest, and of what an average was made

Exit 1 when something is damaged."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="RUN|CHECKPOINT", type=Path, help="a directory")
    parser.add_argument("--verify", action="store_true", help="compare SHA-256 digests too: reads every file")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")


def run(given: argparse.Namespace) -> int:
    require("rich", extra="train")
    from lawa.pretrain.inspect import inspect
    from lawa.pretrain.inspect_text import damages, lines

    found = inspect(given.path, verify=given.verify)
    if given.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        _show(lines(found))
    damaged = damages(found)
    for sentence in damaged:
        print(f"lawa inspect: {sentence}", file=sys.stderr)
    return 1 if damaged else 0


def _show(lines: Iterable[tuple[str, str]]) -> None:
    """A table on a terminal, plain lines elsewhere; what is said of several things is named once."""
    named, before = [], None
    for what, text in lines:
        named.append(("" if what == before else what, text))
        before = what
    if not sys.stdout.isatty():
        for what, text in named:
            print(f"{what:<14} {text}")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for what, text in named:
        table.add_row(what, text)
    Console(highlight=False, markup=False).print(table)
