"""The page in a real browser: everything drawn, the switch works, nothing asked of the network."""

import json
import re
import shutil
import subprocess
from html import unescape

import pytest

from lawa.report.build import build
from report.synthetic import plain, replacing

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--virtual-time-budget=20000",
    "--dump-dom",
]

# Before everything else, so that no problem is missed.
WATCH = """<script>
const problems = [];
addEventListener("error", (event) => problems.push(event.message));
addEventListener("unhandledrejection", (event) => problems.push(String(event.reason)));
document.addEventListener("securitypolicyviolation", (event) => problems.push(event.violatedDirective));
</script>"""

# After the page's own scripts: what is drawn, then the switch to tokens and back.
PROBE = """<pre id="probe"></pre><script>
const state = () => Object.fromEntries(["validation", "training"].map((id) => {
  const plot = document.getElementById(id);
  return [id, {
    traces: plot.data.length,
    lines: plot.querySelectorAll(".scatterlayer .js-line").length,
    names: [...plot.querySelectorAll(".legendtext")].map((name) => name.textContent),
    title: plot.querySelector(".xtitle").textContent,
    range: plot.layout.xaxis.range, lastX: plot.data[0].x.at(-1), height: plot.getBoundingClientRect().height,
  }];
}));
const choose = async (axis) => {
  document.querySelector(`input[value=${axis}]`).click();
  await new Promise((done) => setTimeout(done, 1000));
  return state();
};
drawn.then(async () => {
  const result = { updates: state(), tokens: await choose("tokens"), back: await choose("updates") };
  result.problems = problems;
  result.loads = performance.getEntriesByType("resource").map((entry) => entry.name);
  document.getElementById("probe").textContent = JSON.stringify(result);
});
</script>"""


def probe(page, profile) -> tuple[dict, list[str]]:
    """What the page's probe reports, and the lines the browser's console got."""
    assert CHROMIUM is not None
    done = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(unescape(found[1]) or "{}"), console


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt-get install chromium)")
def test_the_page_in_a_browser(tmp_path):
    runs = [plain(tmp_path / "plain"), replacing(tmp_path / "replace", "replace <b>", slide=False)]
    report = build(runs, tmp_path / "out")
    html = report.page.read_text()
    copy = tmp_path / "out" / "probed.html"
    copy.write_text(html.replace("<head>", "<head>" + WATCH, 1).replace("</body>", PROBE + "</body>"))
    result, console = probe(copy, tmp_path / "profile")

    assert console == []
    assert result["problems"] == []
    assert result["loads"] == []
    for view in ("updates", "tokens", "back"):
        for figure in result[view].values():
            assert figure["lines"] == figure["traces"]
            assert figure["height"] > 400
    assert result["updates"]["validation"]["traces"] == 8  # four losses, a zigzag, three gains
    assert result["updates"]["validation"]["names"] == ["plain", "lawa-5", "ema", "replace <b>"]
    assert result["updates"]["training"]["names"] == ["plain", "replace <b>"]
    for figure in ("validation", "training"):
        before, tokens, back = (result[view][figure] for view in ("updates", "tokens", "back"))
        assert (before["title"], before["lastX"], before["range"][1]) == ("updates", 1200, 1200)
        assert (tokens["title"], tokens["lastX"], tokens["range"][1]) == ("tokens", 1228800, 1228800)
        assert back == before


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt-get install chromium)")
def test_the_browser_sees_a_load_and_an_error(tmp_path):
    """So that the test above can fail."""
    report = build([plain(tmp_path / "plain")], tmp_path / "out")
    html = report.page.read_text()
    bad = '<img src="https://example.invalid/x.png"><script>throw new Error("as planned")</script>'
    copy = tmp_path / "out" / "probed.html"
    copy.write_text(html.replace("<head>", "<head>" + WATCH, 1).replace("</body>", bad + PROBE + "</body>"))
    result, console = probe(copy, tmp_path / "profile")
    assert sorted(result["problems"]) == ["Uncaught Error: as planned", "img-src"]
    assert len(console) == 2
