"""The page: one HTML file that works from file:// and asks nothing of the network.

plotly.js is part of the file, and a content security policy forbids every load. Whatever comes from
records passes through `escape`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import cycle
from typing import Any

from lawa.errors import require
from lawa.report.arms import Arm, Findings
from lawa.report.figures import figures, follows, trained
from lawa.report.look import COLOURS, Stroke, strokes
from lawa.report.page_parts import SCRIPT, STYLE
from lawa.report.picture import alternative
from lawa.report.runs import Run
from lawa.report.text import HEADINGS, NOTHING, cells, headline, size

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"


def page(findings: Findings, png: bytes) -> str:
    """The document. `png` is the picture shown where scripts do not run."""
    first, *more = [run.name for run in findings.runs]
    names = " · ".join([first, *more]) if len(more) < 5 else f"{first} and {len(more)} more runs"
    plotly = require("plotly.offline", extra="report").get_plotlyjs()
    body = "\n".join(
        [
            _header(names, findings),
            _validation(findings, png),
            _leads(findings),
            _table(findings),
            _words(findings),
            _training(findings),
            _times(findings.runs),
            _differences(findings.runs),
            _records(findings.runs),
        ]
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(names)} – LAWA report</title>
<style>{STYLE}</style>
</head>
<body>
<main>
{body}
</main>
<script type="application/json" id="figures">{script_json(figures(findings))}</script>
<script>{_script(plotly)}</script>
<script>{SCRIPT}</script>
</body>
</html>
"""


def script_json(value: Any) -> str:
    """JSON inside a script element: no name in it can close the element."""
    return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _script(source: str) -> str:
    return source.replace("</script", "<\\/script")


def _header(names: str, findings: Findings) -> str:
    notes = "".join(f"<li>{escape(note)}</li>" for note in findings.notes)
    return f"""<header>
<p class="kicker">Latest weight averaging</p>
<h1>{escape(names)}</h1>
<p class="lede">{escape(headline(findings))}</p>
<p class="size">{escape(size(findings))}</p>
</header>
{f'<ul class="notes">{notes}</ul>' if notes else ""}"""


def _validation(findings: Findings, png: bytes) -> str:
    description = escape(alternative(findings))
    image = base64.b64encode(png).decode("ascii")
    return f"""<fieldset class="switch"><legend>Horizontal axis</legend>
<label><input type="radio" name="axis" value="updates" autocomplete="off" checked>updates</label>
<label><input type="radio" name="axis" value="tokens" autocomplete="off">tokens</label></fieldset>
<figure>
<div id="validation" role="img" aria-label="{description}"></div>
<noscript><img src="data:image/png;base64,{image}" alt="{description}"></noscript>
<figcaption>Above, the validation loss; below, how much lower it is than that of
{escape(findings.baseline.label)} at the same update. Where weights were replaced, the thin line shows the loss
before and after. The initial fall is out of view: double-click for everything, drag to look closer, click on a
name to hide or show it.</figcaption>
</figure>"""


def _leads(findings: Findings) -> str:
    if not follows(findings):
        return ""
    return """<h2>How far the averages are ahead</h2>
<figure>
<div id="leads" role="img" aria-label="How many updates each average is ahead of the run it follows."></div>
<figcaption>The loss that an average has at an update, its run first has that many updates later, on a straight line
between evaluations; below zero, it had it that many updates before. There is a gap where the run does not get there
within the steps that were evaluated.</figcaption>
</figure>"""


def _table(findings: Findings) -> str:
    rows = []
    for arm, stroke in zip(findings.arms, strokes(findings.arms), strict=True):
        label, *values = cells(arm, findings)
        lowest = arm is findings.best and arm.comparison and (arm.comparison.gain or 0) > 0
        rows.append(
            f'<tr{" class=best" if lowest else ""}><th scope="row">{_swatch(stroke)}{escape(label)}'
            f'<span class="what">{escape(_what(arm))}</span></th>{_data(values)}</tr>'
        )
    return f"""<h2>The arms</h2>
<div class="scroll"><table><thead><tr>{_heads(HEADINGS)}</tr></thead>
<tbody>{"".join(rows)}</tbody></table></div>"""


def _what(arm: Arm) -> str:
    return arm.what if arm.incomparable is None else f"{arm.what}; not compared"


def _words(findings: Findings) -> str:
    name = escape(findings.baseline.label)
    return f"""<h2>What the words mean</h2>
<dl class="words">
<dt>plain</dt><dd>The weights as training leaves them at an update.</dd>
<dt>average</dt><dd>A window of LAWA is the mean of the latest snapshots of these weights; an EMA weighs all of
them, the older the less. Averages are evaluated, and training never sees them, unless the run
<em>replaces</em>: then the average becomes the model's weights, and training goes on from there.</dd>
<dt>gain</dt><dd>Validation loss of {name} minus that of the arm, in nats per token: positive is better. In the
table it is taken at the end, and once where it was largest. A gain in the middle of a run is partly what the
decay of the learning rate brings {name} later anyway; the end is the fair place to compare.</dd>
<dt>most ahead</dt><dd>The loss that the arm has at an update, {name} reaches that many updates later, also on a
straight line between evaluations; of all updates, the one at which that lead was largest.</dd>
<dt>updates saved</dt><dd>How long before the last evaluation of {name} the arm had reached the loss of that
evaluation, on a straight line between evaluations.</dd>
<dt>chance</dt><dd>Every curve is one run. How much another seed would change it is not known from here.</dd>
</dl>"""


def _training(findings: Findings) -> str:
    if not trained(findings):
        return ""
    names = ", ".join(run.name for run in findings.runs)
    return f"""<h2>Training</h2>
<figure>
<div id="training" role="img"
 aria-label="{escape(f"Two panels: training loss and learning rate of {names}.")}"></div>
<figcaption>Above, the mean training loss since the line before; below, the learning rate.</figcaption>
</figure>"""


def _times(runs: Sequence[Run]) -> str:
    timed = [(run, run.seconds) for run in runs if run.seconds]
    if not timed:
        return ""
    parts = list(dict.fromkeys(part for _, seconds in timed for part in seconds))
    colours = dict(zip(parts, cycle(["var(--faint)", *COLOURS[1:]]), strict=False))
    rows = []
    for run, seconds in timed:
        total = sum(seconds.values()) or 1.0
        bar = "".join(
            f'<span title="{escape(part)}" style="width:{100 * value / total:.2f}%;background:{colours[part]}"></span>'
            for part, value in seconds.items()
        )
        values = [f"{seconds[part]:.1f} s" if part in seconds else NOTHING for part in parts]
        training = seconds.get("training", 0.0)
        share = f"{seconds['averaging'] / training:.2%}" if training and "averaging" in seconds else NOTHING
        rows.append(
            f'<tr><th scope="row">{escape(run.name)}<div class="bar">{bar}</div></th>{_data([*values, share])}</tr>'
        )
    heads = "".join(
        f'<th scope="col"><span class="swatch" style="background:{colours[part]}"></span>{escape(part)}</th>'
        for part in parts
    )
    return f"""<h2>Time</h2>
<div class="scroll"><table><thead><tr><th scope="col">run</th>{heads}
<th scope="col">averaging / training</th></tr></thead><tbody>{"".join(rows)}</tbody></table></div>"""


def _differences(runs: Sequence[Run]) -> str:
    """The settings in which the runs' configurations differ; their names are the columns' heads already."""
    settings = [run.settings for run in runs]
    keys = dict.fromkeys(key for one in settings for key in one if key != "name")
    keys = [key for key in keys if len({one.get(key) for one in settings}) > 1]
    if not keys:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(key)}</th>{_data(one.get(key, NOTHING) for one in settings)}</tr>' for key in keys
    )
    heads = _heads(["setting", *(run.name for run in runs)])
    return f"""<h2>Where the configurations differ</h2>
<div class="scroll"><table class="differences"><thead><tr>{heads}</tr></thead>
<tbody>{rows}</tbody></table></div>"""


def _records(runs: Sequence[Run]) -> str:
    return "<h2>The runs</h2>\n" + "\n".join(
        f"""<details><summary>{escape(run.name)}</summary>
<dl>{_term("path", run.path)}{_term("updates", run.last_update)}
{"".join(_term(key, value) for key, value in run.description.items() if key not in ("name", "updates"))}</dl>
<pre>{escape(run.configuration) if run.configuration else "no config.yaml"}</pre></details>"""
        for run in runs
    )


def _term(name: str, value: Any) -> str:
    if isinstance(value, Mapping):
        value = " · ".join(f"{key}: {inner}" for key, inner in value.items())
    return f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{NOTHING if value is None else escape(str(value))}</dd>"


def _swatch(stroke: Stroke) -> str:
    return f'<span class="swatch" style="background:{stroke.colour}"></span>'


def _heads(names: Iterable[str]) -> str:
    return "".join(f'<th scope="col">{escape(name)}</th>' for name in names)


def _data(values: Iterable[str]) -> str:
    return "".join(f"<td>{escape(value)}</td>" for value in values)
