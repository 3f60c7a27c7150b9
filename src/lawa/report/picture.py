"""The picture: validation loss, and gain over the baseline at the same update, side by side.

1600 × 720 pixels, drawn to be read at half that width, as in a README. Figure objects only: no
pyplot, so no global state and no display.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lawa.errors import require
from lawa.report.arms import Arm, Findings
from lawa.report.look import Stroke, gain_range, loss_range, strokes
from lawa.report.text import cut, headline, number, signed, size, whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

WIDTH, HEIGHT, DPI = 1600, 720, 200
TICKS = 0.062  # of the width, for the numbers left of a panel
INK, FAINT, GRID = "#1f2430", "#5b6270", "#e6e8ec"
LINESTYLES = {"solid": "-", "dash": (0, (5, 2)), "dot": (0, (1.2, 1.6))}


def picture(findings: Findings) -> bytes:
    """The PNG's bytes. The same records give the same bytes with the same matplotlib."""
    figure = require("matplotlib.figure", extra="report").Figure(
        figsize=(WIDTH / DPI, HEIGHT / DPI), dpi=DPI, facecolor="white"
    )
    title = cut(size(findings), 100)
    figure.text(0.014, 0.955, title, size=9.5, weight="bold", color=INK, va="top", parse_math=False)
    coloured = zip(findings.arms, strokes(findings.arms), strict=True)
    drawn = [(arm, stroke) for arm, stroke in coloured if findings.shows(arm)]
    last_update = max((run.last_update for run in findings.runs), default=0) or 1
    left, right = figure.subplots(1, 2)
    labels = _losses(left, drawn, last_update), _gains(right, drawn, findings.baseline)
    for axes in (left, right):
        _dress(axes, last_update)
    with warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes; that is no reason to fail.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        _place(left, right, *labels)
        file = io.BytesIO()
        figure.savefig(file, format="png", metadata={"Software": None, "Description": alternative(findings)})
    return file.getvalue()


def _place(left: Axes, right: Axes, left_labels: Sequence[Text], right_labels: Sequence[Text]) -> None:
    """Share the width: the labels take what their text needs, the panels the rest, 55 to 45."""
    needs = [
        max((label.get_window_extent().width for label in labels), default=0) / WIDTH + 0.024
        for labels in (left_labels, right_labels)
    ]
    panels = max(1 - sum(needs) - 2 * TICKS, 0.3)
    left.set_position((TICKS, 0.135, 0.55 * panels, 0.675))
    right.set_position((0.55 * panels + needs[0] + 2 * TICKS, 0.135, 0.45 * panels, 0.675))


def alternative(findings: Findings) -> str:
    """What the picture shows, for those who do not see it."""
    return (
        f"Two panels against updates: validation loss of {', '.join(arm.label for arm in findings.shown)}; "
        f"and their gain over {findings.baseline.label} at the same update. {headline(findings)}"
    )


def _losses(axes: Axes, drawn: Sequence[tuple[Arm, Stroke]], last_update: int) -> list[Text]:
    axes.set_ylim(*loss_range([arm for arm, _ in drawn]))
    labels = []
    for arm, stroke in drawn:
        if arm.zigzag is not None:
            axes.plot(arm.zigzag.updates, arm.zigzag.losses, color=stroke.colour, linewidth=0.6, alpha=0.55)
        _line(axes, arm.curve.updates, arm.curve.losses, stroke)
        if arm.final_loss is not None:
            early = "" if arm.final_update == last_update else f" at {whole(arm.final_update)}"
            end = "diverged" if arm.diverged else number(arm.final_loss, 3) + early
            labels.append((arm.final_loss, f"{cut(arm.label, 20)}  {end}", stroke))
    if not labels:
        axes.text(0.5, 0.5, "no evaluation yet", size=9, color=FAINT, ha="center", transform=axes.transAxes)
    _heading(axes, "Validation loss, nats per token")
    return _label(axes, labels)


def _gains(axes: Axes, drawn: Sequence[tuple[Arm, Stroke]], baseline: Arm) -> list[Text]:
    axes.set_ylim(*gain_range([arm for arm, _ in drawn]))
    axes.axhline(0, color=drawn[0][1].colour, linewidth=1.2, zorder=1)
    labels = []
    for arm, stroke in drawn[1:]:
        gains = arm.comparison.gains if arm.comparison else ()
        _line(axes, [gain.update for gain in gains], [gain.value for gain in gains], stroke)
        if gains and not arm.diverged:
            labels.append((gains[-1].value, f"{cut(arm.label, 18)}  {signed(gains[-1].value, 3)}", stroke))
    _heading(axes, f"Gain over {cut(baseline.label, 18)} at the same update")
    return _label(axes, labels)


def _line(axes: Axes, updates: Sequence[int], values: Sequence[float], stroke: Stroke) -> None:
    alone = {"marker": "o", "markersize": 3} if len(updates) == 1 else {}
    axes.plot(updates, values, color=stroke.colour, linestyle=LINESTYLES[stroke.dash], linewidth=1.5, **alone)


def _label(axes: Axes, labels: Sequence[tuple[float, str, Stroke]]) -> list[Text]:
    """Names at the right edge, beside where each line ends, pushed apart where they would touch."""
    low, high = axes.get_ylim()
    # A line that leaves the panel is named at the edge it left through.
    heights = [min(max((y - low) / (high - low), 0.0), 1.0) if math.isfinite(y) else 1.0 for y, _, _ in labels]
    gap = min(0.075, 1 / max(len(labels), 1))
    texts = []
    for height, place, (value, text, stroke) in zip(heights, spread(heights, gap), labels, strict=True):
        outside = " ↓" if value < low else " ↑" if high < value < math.inf else ""
        leader = {"color": stroke.colour, "linewidth": 0.7, "clip_on": False, "transform": axes.transAxes}
        axes.plot((1.0, 1.035), (height, place), **leader)
        font = {"size": min(8.5, 115 * gap), "color": stroke.colour, "va": "center", "parse_math": False}
        texts.append(axes.text(1.045, place, text + outside, transform=axes.transAxes, **font))
    return texts


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Places in [0, 1], in the same order and at least `gap` apart, near where they were.

    Neighbours that touch form a block around their mean, and blocks that touch become one.
    """
    blocks: list[tuple[float, list[int]]] = []  # the lowest place of a block, its members from below

    def bottom(members: list[int]) -> float:
        middle = sum(places[i] for i in members) / len(members)
        length = gap * (len(members) - 1)
        return min(max(middle - length / 2, 0.0), max(1.0 - length, 0.0))

    for i in sorted(range(len(places)), key=lambda i: places[i]):
        members = [i]
        while blocks and bottom(members) < blocks[-1][0] + gap * len(blocks[-1][1]):
            members = blocks.pop()[1] + members
        blocks.append((bottom(members), members))
    result = [0.0] * len(places)
    for start, members in blocks:
        for rank, i in enumerate(members):
            result[i] = start + gap * rank
    return result


def _heading(axes: Axes, text: str) -> None:
    axes.set_title(text, size=8.5, color=FAINT, loc="left", pad=7, parse_math=False)


def _dress(axes: Axes, last_update: int) -> None:
    axes.set_xlim(0, last_update)
    axes.set_xlabel("updates", size=8, color=FAINT, labelpad=2)
    axes.grid(True, axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=FAINT, labelsize=7.5, length=0, pad=4)
    axes.locator_params(axis="y", nbins=6)
    axes.locator_params(axis="x", nbins=4, steps=[1, 2, 2.5, 3, 4, 5, 10])
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#b9bec8")
