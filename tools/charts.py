"""The picture of averaging on disk: time and peak memory against the number of checkpoints and the model's size.

1600 × 1120 pixels, drawn to be read at half that width. Figure objects only: no pyplot, so no display.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from lawa.report.look import BASELINE, COLOURS
from measure import Record, Spread, read_found

WIDTH, HEIGHT, DPI = 1600, 1120, 200
DTYPE = "bfloat16"  # of the checkpoints that are drawn
WHO = {
    "limit": ("the limit: cat of all, cp of one", BASELINE),
    "engine": ("the engine", COLOURS[2]),
    "process": ("lawa average", COLOURS[0]),
    "whole": ("whole checkpoints, one by one", COLOURS[4]),
    "mergekit": ("mergekit", COLOURS[1]),
}
_CASE = re.compile(r"disk/(\d+)-(\d+)M-(\w+)/(?:engine|whole|mergekit|memory/\w+)$")

Series = dict[int, Spread]  # along one axis


@dataclass(frozen=True, order=True)
class Case:
    count: int
    millions: int


def picture(described: Mapping[str, Any]) -> bytes:
    """The PNG's bytes; digest(described) is in them."""
    seconds, peaks = collect(described, memory=False), collect(described, memory=True)
    figure = Figure(figsize=(WIDTH / DPI, HEIGHT / DPI), dpi=DPI, facecolor="white", layout="constrained")
    panels = figure.subplots(2, 2)
    fixed = most_common(seconds)
    for row, (values, unit, scale) in enumerate(((seconds, "seconds", 1.0), (peaks, "peak memory, GB", 1e-9))):
        _draw(panels[row][0], along(values, "count", fixed), scale)
        _draw(panels[row][1], along(values, "millions", fixed), scale)
        panels[row][0].set_ylabel(unit, size=8)
    panels[1][0].set_xlabel(f"checkpoints of {fixed.millions}M parameters, {DTYPE}", size=8)
    panels[1][1].set_xlabel(f"million parameters of {fixed.count} checkpoints, {DTYPE}", size=8)
    handles = {str(line.get_label()): line for axes in figure.axes for line in axes.get_lines()}
    figure.legend([*handles.values()], [*handles], loc="outside upper center", ncols=len(handles), fontsize=7)
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None, "Source": digest(described)})
    return file.getvalue()


def digest(described: Mapping[str, Any]) -> str:
    """Of the records that are drawn."""
    return hashlib.sha256(json.dumps(described["records"], sort_keys=True).encode()).hexdigest()


def collect(described: Mapping[str, Any], *, memory: bool) -> dict[str, dict[Case, Spread]]:
    """{who: {case: seconds, or bytes at its peak}}."""
    found: dict[str, dict[Case, Spread]] = {who: {} for who in WHO}
    for record in read_found(described):
        told = _CASE.match(record.name)
        if told is None or told[3] != DTYPE or not isinstance(record, Record):
            continue
        for part, spread in record.parts.items():
            who, of_memory, _ = part.partition(", bytes")
            if bool(of_memory) == memory and who in WHO:
                found[who][Case(int(told[1]), int(told[2]))] = spread
    return {who: cases for who, cases in found.items() if cases}


def most_common(values: Mapping[str, Mapping[Case, Spread]]) -> Case:
    """The number of checkpoints, and the size, that most cases share."""
    cases = sorted({case for one in values.values() for case in one})
    [(count, _)] = Counter(case.count for case in cases).most_common(1)
    [(millions, _)] = Counter(case.millions for case in cases).most_common(1)
    return Case(count, millions)


def along(values: Mapping[str, Mapping[Case, Spread]], axis: str, fixed: Case) -> dict[str, Series]:
    """The cases that differ from `fixed` in nothing but `axis`."""
    at = getattr(fixed, axis)
    return {
        who: {getattr(one, axis): cases[one] for one in sorted(cases) if replace(one, **{axis: at}) == fixed}
        for who, cases in values.items()
    }


def _draw(axes: Axes, series: Mapping[str, Series], scale: float) -> None:
    """Medians, with a bar from the least to the most."""
    for who, points in series.items():
        label, colour = WHO[who]
        x = list(points)
        middle = [spread.median * scale for spread in points.values()]
        least, most = ([getattr(one, end) * scale for one in points.values()] for end in ("least", "most"))
        axes.vlines(x, least, most, colour)
        axes.plot(x, middle, color=colour, marker="o", markersize=3, linewidth=1.5, label=label)
    axes.set_yscale("log")
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.set_xticks(sorted({x for points in series.values() for x in points}))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.tick_params(which="both", labelsize=7)
    axes.grid(axis="y", color="#e6e8ec", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
