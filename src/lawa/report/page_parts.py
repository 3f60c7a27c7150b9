"""The page's style sheet and script: text that is the same in every report."""

STYLE = """
:root { color-scheme: light dark; --paper: #fdfdfb; --ink: #1f2430; --faint: #5b6270; --rule: #dfe2e7;
        --tint: #f3f4f6; --warn: #fff6df; --warn-rule: #d9a400; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171c; --ink: #e4e7ec; --faint: #9aa3b2; --rule: #2d333d;
          --tint: #1d2128; --warn: #2b2615; --warn-rule: #b98e10; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 3rem 1.5rem 5rem; }
p, .notes, header { max-width: 44rem; }
.kicker { margin: 0; color: var(--faint); font-size: .85rem; letter-spacing: .06em; text-transform: uppercase; }
h1 { margin: .2rem 0 .8rem; font-size: 2rem; line-height: 1.2; letter-spacing: -.015em; overflow-wrap: anywhere; }
h2 { margin: 3.2rem 0 .8rem; font-size: 1.25rem; letter-spacing: -.005em; }
.lede { font-size: 1.15rem; margin: 0 0 .6rem; }
.size, figcaption, .what { color: var(--faint); }
.size { margin: 0; }
figcaption, .what { font-size: .875rem; }
figcaption { max-width: 44rem; margin-top: .4rem; }
.what { display: block; padding-left: 1.35em; }
.notes { margin: 1.6rem 0 0; padding: .7rem 1rem .7rem 2rem; background: var(--warn);
         border-left: 3px solid var(--warn-rule); }
.notes li + li { margin-top: .3rem; }
figure { margin: 1rem 0 0; }
.switch { display: flex; gap: 1rem; margin: 1.6rem 0 0; padding: 0; border: 0; font-size: .9rem; }
.switch legend { float: left; padding: 0; margin-right: .25rem; color: var(--faint); }
.switch label { cursor: pointer; }
.switch input { accent-color: var(--ink); margin: 0 .35rem 0 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .5rem .75rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--rule);
         white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; white-space: normal;
                                 min-width: 11rem; }
thead th { color: var(--faint); font-weight: 500; font-size: .875rem; border-bottom-color: var(--faint); }
tbody th { font-weight: 500; overflow-wrap: anywhere; }
.best td, .best th { font-weight: 700; }
.best .what { font-weight: 400; }
.swatch { display: inline-block; width: .85em; height: .28em; margin-right: .5em; vertical-align: middle; }
.differences td { text-align: left; white-space: normal; overflow-wrap: anywhere; background: var(--tint);
                  font-family: ui-monospace, SFMono-Regular, Menlo, monospace; font-size: .875rem; }
.differences th { text-align: left; }
.bar { display: flex; width: 100%; min-width: 8rem; height: .8rem; margin-top: .4rem; background: var(--tint); }
.bar span { height: 100%; }
details { margin: .5rem 0; border-top: 1px solid var(--rule); padding-top: .5rem; }
summary { cursor: pointer; font-weight: 500; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.25rem; margin: .8rem 0; font-size: .9rem; }
dt { color: var(--faint); } dd { margin: 0; overflow-wrap: anywhere; }
pre { padding: .9rem 1rem; overflow-x: auto; background: var(--tint); font-size: .825rem; line-height: 1.45; }
.words dt { color: var(--ink); font-weight: 600; } .words { font-size: 1rem; gap: .5rem 1.25rem; max-width: 50rem; }
noscript img { width: 100%; height: auto; background: white; }
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; } dd { margin-bottom: .5rem; } }
"""

SCRIPT = """
"use strict";
const figures = JSON.parse(document.getElementById("figures").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const element = (figure) => document.getElementById(figure.id);
const along = (figure, axis) => figure.along.map((x) => x[axis]);

function theme() {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const axis = (name) => ({ [name + ".gridcolor"]: colour("--rule"), [name + ".linecolor"]: colour("--faint"),
                            [name + ".zerolinecolor"]: colour("--faint") });
  return { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", "font.color": colour("--ink"),
           "font.family": getComputedStyle(document.body).fontFamily, "font.size": 13,
           "modebar.bgcolor": "rgba(0,0,0,0)", "modebar.color": colour("--rule"),
           "modebar.activecolor": colour("--faint"),
           "hoverlabel.bgcolor": colour("--paper"), "hoverlabel.bordercolor": colour("--rule"),
           "hoverlabel.font.color": colour("--ink"),
           ...axis("xaxis"), ...axis("yaxis"), ...axis("yaxis2") };
}

const drawn = Promise.all(figures.map(async (figure) => {
  const x = along(figure, "updates");
  const data = figure.data.map((trace, i) => ({ ...trace, x: x[i] }));
  await Plotly.newPlot(element(figure), data, figure.layout,
                       { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"] });
  await Plotly.relayout(element(figure), theme());
}));

function switchAxis(axis) {
  return Promise.all(figures.map((figure) => Plotly.update(
    element(figure), { x: along(figure, axis) }, { "xaxis.title.text": axis, "xaxis.autorange": true })));
}

dark.addEventListener("change", () => figures.forEach((figure) => Plotly.relayout(element(figure), theme())));
for (const input of document.querySelectorAll("input[name=axis]"))
  input.addEventListener("change", () => drawn.then(() => switchAxis(input.value)));
"""
