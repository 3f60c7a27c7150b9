import json
import math
from html.parser import HTMLParser

import pytest

from lawa.errors import LawaError
from lawa.report.arms import find
from lawa.report.figures import figures
from lawa.report.page import page, script_json
from lawa.report.runs import load_runs
from report.synthetic import end, evaluation, plain, replacement, replacing, run_json, write

LOADS = {"src", "href", "data", "poster", "srcset", "action", "background", "cite", "formaction", "xlink:href"}


class Reader(HTMLParser):
    """The elements, their attributes and the text between them, as a browser would find them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        tag = self.tags[-1][0] if self.tags else ""
        self.text[tag] = self.text.get(tag, "") + data


def page_of(*directories):
    return page(find(load_runs(directories)), b"PNG")


@pytest.fixture(scope="module")
def realistic(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    return [plain(out / "plain"), replacing(out / "replace", "replace", slide=False)]


@pytest.fixture(scope="module")
def html(realistic):
    return page_of(*realistic)


def test_nothing_is_loaded_from_anywhere(html):
    reader = Reader(html)
    loads = [value for _, attributes in reader.tags for name, value in attributes.items() if name in LOADS]
    assert loads == ["data:image/png;base64,UE5H"]
    assert "link" not in {tag for tag, _ in reader.tags}
    assert "@import" not in reader.text["style"]
    assert "url(" not in reader.text["style"]
    policy = next(a["content"] for tag, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy


def test_the_test_above_can_fail():
    reader = Reader('<script src="https://cdn.plot.ly/plotly.js"></script>')
    assert [value for _, attributes in reader.tags for value in attributes.values()] == [
        "https://cdn.plot.ly/plotly.js"
    ]


def test_plotly_is_inside(html):
    assert "* plotly.js v" in html
    assert len(html) > 1_000_000


def test_the_page_tells_the_whole_story(html):
    for words in [
        "plain · replace</h1>",
        "1.32M parameters",
        "one run per arm, seed 0",
        "EMA beta 0.98, every 1",
        "weights replaced with lawa 12×, window: clear",
        "updates saved",
        "averaging / training",
        "0.50%",  # 0.4 s of 80.1 s
        "<td>evaluate</td><td>replace</td>",  # averaging.mode, where the configurations differ
        "torch: 2.9.0",
        "0123abc",
        "processor: an example",
        "lr: 0.004",
    ]:
        assert words in html
    reader = Reader(html)
    labels = [a["aria-label"] for tag, a in reader.tags if tag == "div" and a.get("role") == "img"]
    assert len(labels) == 2
    assert all(labels)


def test_the_figures_are_what_plotly_understands(realistic):
    objects = pytest.importorskip("plotly.graph_objects")
    for figure in figures(find(load_runs(realistic))):
        objects.Figure({"data": figure["data"], "layout": figure["layout"]})  # raises on an unknown property
        assert len(figure["along"]) == len(figure["data"])
        for trace, along in zip(figure["data"], figure["along"], strict=True):
            assert len(along["updates"]) == len(along["tokens"]) == len(trace["y"]) == len(trace["text"])


def test_the_hover_text_says_how_far_ahead(tmp_path):
    lines = [
        evaluation(100, plain=5.0, a=5.5),
        evaluation(200, plain=4.0, a=4.5),
        evaluation(300, plain=3.0, a=2.5),
        evaluation(400, plain=2.5, a=2.0),
    ]
    (validation, _) = figures(find(load_runs([write(tmp_path / "a", run_json("a"), lines)])))
    gain = next(trace for trace in validation["data"] if trace.get("yaxis") == "y2")
    assert gain["y"] == [-0.5, -0.5, 0.5, 0.5]
    assert gain["text"] == [
        " · 0 updates ahead",  # plain's first loss is below 5.5 already
        " · 50 updates behind",
        " · 100 updates ahead",
        " · lower than it ever gets",
    ]


def test_what_a_picture_has_no_room_for_waits_in_the_legend(tmp_path):
    base = write(tmp_path / "base", run_json("base"), [evaluation(20, plain=2.0)])
    lines = [evaluation(20, plain=5.0, lawa=4.0, ema=9.0), replacement(20, 4.0)]
    other = write(tmp_path / "r", run_json("r", mode="replace", replaced_with="lawa"), lines)
    (validation, _) = figures(find(load_runs([base, other])))
    visible = {trace["name"]: trace["visible"] for trace in validation["data"]}
    assert visible == {"plain": True, "r": True, "r · ema": "legendonly"}
    assert validation["layout"]["yaxis"]["range"][1] < 9.0


def test_the_hover_text_at_a_replacement_has_both_losses(tmp_path):
    lines = [evaluation(20, plain=5.0), evaluation(40, plain=4.0), replacement(40, 3.5)]
    runs = load_runs([write(tmp_path / "a", run_json("a", mode="replace"), lines)])
    (validation, _) = figures(find(runs))
    assert ["", " (before replacement 4.0000)"] in [trace["text"] for trace in validation["data"]]


HOSTILE = "<script>alert(1)</script>\"'&<a href='https://evil.example'>"


def test_whatever_a_record_says_is_text(tmp_path):
    description = run_json(
        HOSTILE,
        averages={HOSTILE: HOSTILE},
        model={"architecture": HOSTILE, "parameters": HOSTILE},
        versions={HOSTILE: HOSTILE},
        seed=HOSTILE,
        updates=HOSTILE,
        tokens_per_update=HOSTILE,
        **{HOSTILE: [HOSTILE]},
    )
    lines = [evaluation(20, plain=3.0, **{HOSTILE: 2.0}), end(20)]
    lines[-1]["seconds"][HOSTILE] = 1.0
    a = write(tmp_path / "a", description, lines, {HOSTILE: HOSTILE})
    b = write(tmp_path / "b", run_json("b"), lines, {"other": 1})
    html = page_of(a, b)
    tags = [tag for tag, _ in Reader(html).tags]
    assert tags.count("script") == 3
    assert "a" not in tags
    start = html.index('id="figures">') + len('id="figures">')
    drawn = json.loads(html[start : html.index("</script>", start)])
    names = {trace["name"] for figure in drawn for trace in figure["data"]}
    assert all("<" not in name for name in names)


def test_no_string_ends_the_script_it_stands_in():
    assert "</" not in script_json({"name": "</script>"})
    assert json.loads(script_json({"name": "</script>"})) == {"name": "</script>"}


def test_a_run_without_anything_still_has_a_page(tmp_path):
    (tmp_path / "run.json").write_text('{"name": "begun"}')
    html = page_of(tmp_path)
    assert "begun has no evaluation yet." in html
    assert "no config.yaml" in html


def test_losses_that_are_not_finite(tmp_path):
    lines = [evaluation(20, plain=3.0, a=math.nan), evaluation(40, plain=math.nan, a=math.inf)]
    html = page_of(write(tmp_path / "a", run_json("a"), lines))
    assert "Diverged: plain (nan at update 40), a (inf at update 40)." in html
    assert '"y":[3.0,null]' in html
    assert "<td>inf</td>" in html


def test_settings_that_are_no_yaml(tmp_path):
    directory = write(tmp_path / "a", run_json("a"), [])
    (directory / "config.yaml").write_text("a: [")
    with pytest.raises(LawaError, match=r"config.yaml is not YAML"):
        page_of(directory)
