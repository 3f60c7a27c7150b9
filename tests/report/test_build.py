import json
import math
import subprocess
import sys

import pytest

from lawa.errors import LawaError
from lawa.report.build import build, table
from report.synthetic import evaluation, plain, replacing, run_json, write


def test_a_report_is_three_files_and_the_same_records_give_the_same_bytes(tmp_path):
    runs = [plain(tmp_path / "plain"), replacing(tmp_path / "replace", "replace", slide=True)]
    report = build(runs, tmp_path / "one")
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["losses.png", "report.html", "summary.json"]
    again = build(runs, tmp_path / "two")
    for first, second in zip(
        (report.page, report.picture, report.summary), (again.page, again.picture, again.summary), strict=True
    ):
        assert first.read_bytes() == second.read_bytes()
    assert build(runs, tmp_path / "one").page.read_bytes() == again.page.read_bytes()  # over an earlier report


def test_the_summary_is_strict_json_with_the_table(tmp_path):
    lines = [
        evaluation(100, plain=5.0, a=4.0, b=4.0),
        evaluation(200, plain=4.0, a=3.5, b=math.nan),
    ]
    report = build([write(tmp_path / "run", run_json("run"), lines)], tmp_path / "out")

    def refuse(constant):
        raise AssertionError(constant)

    summary = json.loads(report.summary.read_text(), parse_constant=refuse)
    assert summary["baseline"] == "plain"
    assert [arm["label"] for arm in summary["arms"]] == ["plain", "a", "b"]
    assert summary["arms"][1] == {
        "label": "a",
        "what": "average",
        "run": "run",
        "average": "a",
        "snapshots": 5,
        "final_update": 200,
        "final_loss": 3.5,
        "diverged": False,
        "gain": 0.5,
        "largest_gain": 1.0,
        "largest_gain_update": 100,
        "updates_saved": 100.0,
        "most_ahead": 100.0,
        "most_ahead_update": 100,
        "ahead": [[100, 100.0], [200, None]],
        "incomparable": None,
    }
    b = summary["arms"][2]
    assert (b["final_loss"], b["diverged"], b["gain"]) == (None, True, None)
    assert summary["runs"][0]["finished"] is False


def test_the_table_for_a_terminal(tmp_path):
    lines = [evaluation(100, plain=5.0, a=4.0), evaluation(200, plain=4.0, a=4.5)]
    report = build([write(tmp_path / "run", run_json("run"), lines)], tmp_path / "out")
    assert table(report) == (
        "At update 200 the validation loss of plain is 4.0000 nats per token. "
        "No arm ends below it; the nearest, a, ends 0.5000 above.\n"
        "\n"
        "arm    final loss      gain    largest gain          most ahead  updates saved  snapshots\n"
        "plain      4.0000  baseline               –                   –              –          –\n"
        "a          4.5000   −0.5000  +1.0000 at 100  100 updates at 100      100 (50%)          5\n"
        "\n"
        "Note: run is unfinished: its records reach update 200 of 1200."
    )


def test_nothing_is_written_when_a_run_cannot_be_read(tmp_path):
    with pytest.raises(LawaError):
        build([tmp_path / "nowhere"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(LawaError, match="is a file"):
        build([write(tmp_path / "run", run_json("run"), [])], tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_importing_the_report_imports_nothing_heavy():
    heavy = "{'torch', 'matplotlib', 'plotly', 'yaml', 'rich', 'numpy'}"
    code = f"import sys, lawa.report.build; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_missing_extra_is_named_with_its_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(LawaError, match=r"latest-weight-averaging\[report\]"):
        build([write(tmp_path / "run", run_json("run"), [])], tmp_path / "out")
