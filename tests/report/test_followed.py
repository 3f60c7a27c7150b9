"""The page of `lawa follow`: how far averages are ahead of their run, and no training."""

import json

import pytest

from lawa.report.build import build
from report.synthetic import plain, run_json, write


def followed(directory):
    """Plain falls by 0.1 every 1000 updates; the average is 0.15 below it until the run's end is near."""
    lines = []
    for step in range(1000, 11000, 1000):
        lines.append({"kind": "evaluation", "update": step, "tokens": step, "losses": {"plain": 4 - step / 1e4}})
        loss = 4 - step / 1e4 + (0.05 if step == 10000 else -0.15)
        lines.append({"kind": "evaluation", "update": step, "tokens": step, "losses": {"window3": loss}})
    description = run_json("followed", follows={"name": "tiny"}, averages={"window3": "window 3"}, updates=10000)
    return write(directory, description, lines)


def figures(report):
    html = report.page.read_text()
    return html, json.loads(html.split('<script type="application/json" id="figures">')[1].split("</script>")[0])


def test_updates_ahead_at_every_step(tmp_path):
    html, drawn = figures(build([followed(tmp_path / "followed")], tmp_path / "out"))
    assert [figure["id"] for figure in drawn] == ["validation", "leads"]
    assert "How far the averages are ahead" in html
    assert 'id="training"' not in html
    [trace] = drawn[1]["data"]
    assert trace["y"] == [*[pytest.approx(1500)] * 8, None, pytest.approx(-500)]  # of 9000 beyond, at 10000 behind
    assert drawn[1]["along"][0]["updates"] == list(range(1000, 11000, 1000))
    assert "yaxis2" not in drawn[1]["layout"]


def test_beside_a_run_that_was_trained_both_are_shown(tmp_path):
    report = build([followed(tmp_path / "followed"), plain(tmp_path / "plain")], tmp_path / "out")
    html, drawn = figures(report)
    assert [figure["id"] for figure in drawn] == ["validation", "leads", "training"]
    assert 'id="training"' in html
    assert len(drawn[1]["data"]) == 1


def test_a_report_of_runs_alone_has_no_such_figure(tmp_path):
    html, drawn = figures(build([plain(tmp_path / "plain")], tmp_path / "out"))
    assert [figure["id"] for figure in drawn] == ["validation", "training"]
    assert 'id="leads"' not in html
