"""What a verb found, as lines for people: (what, text)."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable


def show(lines: Iterable[tuple[str, str]]) -> None:
    """A table on a terminal, plain lines elsewhere and without rich; what is said of several things is named once."""
    named, before = [], None
    for what, text in lines:
        named.append(("" if what == before else what, text))
        before = what
    if not sys.stdout.isatty() or not importlib.util.find_spec("rich"):
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
