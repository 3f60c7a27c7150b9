"""The page's interactive figures, as the dictionaries that plotly.js draws.

Built by hand, not by plotly's Python objects: the page only needs their JSON, with every curve once
against updates and once against tokens, and a document that is the same for the same records.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from typing import Any

from lawa.report.arms import Arm, Findings
from lawa.report.compare import Comparison
from lawa.report.look import Stroke, gain_range, loss_range, strokes, training_range
from lawa.report.runs import Curve
from lawa.report.text import cut, whole
from lawa.trajectories.ahead import ahead

Figure = dict[str, Any]  # id, data, layout; along: the x of each trace, {updates: …, tokens: …}
Trace = dict[str, Any]


def figures(findings: Findings) -> list[Figure]:
    led = [_leads(findings)] if follows(findings) else []
    return [_validation(findings), *led, *([_training(findings)] if trained(findings) else [])]


def follows(findings: Findings) -> bool:
    """Whether there are averages along a released run, whose lead over it is the question."""
    return any("follows" in run.description for run in findings.runs)


def trained(findings: Findings) -> bool:
    """Whether there are training losses to show; `lawa follow` has none."""
    return any("follows" not in run.description for run in findings.runs)


def _validation(findings: Findings) -> Figure:
    """Losses above, gains below, against the same x axis."""
    traces: list[Trace] = []
    for place, (arm, stroke) in enumerate(zip(findings.arms, strokes(findings.arms), strict=True)):
        group, curve = f"arm{place}", replace(arm.curve, name=arm.label)
        drawn = [_trace(curve, stroke, group, hover="%{y:.4f}") | {"text": _before(arm)}]
        if arm.zigzag is not None:
            both = _trace(replace(arm.zigzag, name=arm.label), stroke, group, hover="", width=1)
            drawn.append(both | {"opacity": 0.55, "showlegend": False, "hoverinfo": "skip"})
        if arm.comparison is not None:
            drawn.append(_gain(arm, arm.comparison, findings.baseline, stroke, group))
        # What is not shown has its name in the legend, to be clicked on.
        traces += [trace | {"visible": True if findings.shows(arm) else "legendonly"} for trace in drawn]
    gain = f"gain over {escape(cut(findings.baseline.label, 28))}"
    upper = _axis("validation loss, nats per token", loss_range(findings.shown), domain=(0.42, 1.0))
    lower = _axis(gain, gain_range(findings.shown), domain=(0.0, 0.35))
    lower |= {"zeroline": True, "zerolinewidth": 1.5}
    return _figure("validation", traces, _layout(upper, lower, height=700))


def _leads(findings: Findings) -> Figure:
    """How many updates each average is ahead of the run that it follows; a gap where the run never gets there."""
    traces = []
    for place, (arm, stroke) in enumerate(zip(findings.arms, strokes(findings.arms), strict=True)):
        if arm.average is None or "follows" not in arm.run.description:
            continue
        plain, curve = dict(zip(arm.run.plain.updates, arm.run.plain.losses, strict=True)), arm.curve
        leads = [ahead(plain, t, loss) for t, loss in zip(curve.updates, curve.losses, strict=True)]
        curve = Curve(arm.label, curve.updates, curve.tokens, tuple(math.nan if one is None else one for one in leads))
        traces.append(_trace(curve, stroke, f"arm{place}", hover="%{y:+,.0f}") | {"mode": "lines+markers"})
    axis = _axis("updates ahead of the run", None, domain=(0.0, 1.0)) | {"zeroline": True, "zerolinewidth": 1.5}
    layout = _layout(axis, axis, height=420)
    del layout["yaxis2"]
    return _figure("leads", traces, layout | {"showlegend": True, "xaxis": layout["xaxis"] | {"anchor": "y"}})


def _training(findings: Findings) -> Figure:
    """Training loss above, learning rate below: a line for each run, in the colour of its own weights."""
    drawn = list(zip(findings.arms, strokes(findings.arms), strict=True))
    traces = []
    for place, run in enumerate(findings.runs):
        stroke = [stroke for arm, stroke in drawn if arm.run is run and arm.average is None][-1]
        training, group = run.training, f"run{place}"
        loss = Curve(run.name, training.updates, training.tokens, training.losses)
        rate = Curve(run.name, training.updates, training.tokens, training.learning_rates)
        traces += [
            _trace(loss, stroke, group, hover="%{y:.4f}", width=1.2),
            _trace(rate, stroke, group, hover="%{y:.3g}") | {"yaxis": "y2", "showlegend": False},
        ]
    shown = training_range((run.training.updates, run.training.losses) for run in findings.runs)
    upper = _axis("training loss, nats per token", shown, domain=(0.38, 1.0))
    lower = _axis("learning rate", None, domain=(0.0, 0.3)) | {"rangemode": "tozero", "exponentformat": "e"}
    return _figure("training", traces, _layout(upper, lower, height=540))


def _trace(curve: Curve, stroke: Stroke, group: str, *, hover: str, width: float = 2) -> Trace:
    # Plotly reads names as a small HTML: escaped here, or a name could hold a link.
    name = escape(cut(curve.name, 40))
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(curve.updates) == 1 else "lines",
        "name": name,
        "legendgroup": group,
        "y": [_drawn(loss) for loss in curve.losses],
        "line": {"color": stroke.colour, "dash": stroke.dash, "width": width},
        "hovertemplate": f"%{{fullData.name}} <b>{hover}</b>%{{text}}<extra></extra>",
        "text": [""] * len(curve.updates),
        "along": {"updates": curve.updates, "tokens": curve.tokens},
    }


def _before(arm: Arm) -> list[str]:
    """For the hover text at a replacement: the loss of the weights that were replaced."""
    live = dict(zip(arm.run.plain.updates, arm.run.plain.losses, strict=True))
    replaced = {r.update for r in arm.run.replacements if r.applied} if arm.zigzag else set()
    return [
        f" (before replacement {live[update]:.4f})" if update in replaced and update in live else ""
        for update in arm.curve.updates
    ]


def _gain(arm: Arm, comparison: Comparison, baseline: Arm, stroke: Stroke, group: str) -> Trace:
    tokens = dict(zip(arm.curve.updates, arm.curve.tokens, strict=True))
    updates = tuple(gain.update for gain in comparison.gains)
    curve = Curve(
        arm.label, updates, tuple(tokens[update] for update in updates), tuple(gain.value for gain in comparison.gains)
    )
    ahead = dict(comparison.ahead)
    return _trace(curve, stroke, group, hover="%{y:+.4f}") | {
        "yaxis": "y2",
        "showlegend": False,
        "text": [f" · {_ahead(update, ahead[update], baseline)}" for update in updates],
    }


def _ahead(update: int, ahead: float | None, baseline: Arm) -> str:
    if ahead is not None:
        return f"{whole(abs(ahead))} updates {'ahead' if ahead >= 0 else 'behind'}"
    left = (baseline.final_update or 0) - update
    return f"more than {whole(left)} updates ahead" if left > 0 else "lower than it ever gets"


def _axis(title: str, shown: tuple[float, float] | None, domain: tuple[float, float]) -> dict[str, Any]:
    axis: dict[str, Any] = {"title": {"text": title, "standoff": 12}, "domain": domain, "zeroline": False}
    return axis if shown is None else axis | {"range": shown}


def _layout(upper: dict[str, Any], lower: dict[str, Any], *, height: int) -> dict[str, Any]:
    return {
        "height": height,
        "margin": {"l": 70, "r": 20, "t": 34, "b": 60},
        "hovermode": "x unified",
        # Below the axis title; as its rows grow, the margin grows with them.
        "legend": {"orientation": "h", "x": 0, "y": -56 / (height - 140), "yanchor": "top"},
        "xaxis": {
            "title": {"text": "updates", "standoff": 8},
            "anchor": "y2",
            "rangemode": "tozero",
            "showgrid": False,
        },
        "yaxis": upper,
        "yaxis2": lower,
    }


def _figure(name: str, traces: Sequence[Trace], layout: dict[str, Any]) -> Figure:
    along = [trace.pop("along") for trace in traces]  # not Plotly's: the switch of the axis sets x from it
    return {"id": name, "data": list(traces), "layout": layout, "along": along}


def _drawn(value: float) -> float | None:
    """Plotly draws a gap for null, and JSON has no nan."""
    return value if math.isfinite(value) else None
