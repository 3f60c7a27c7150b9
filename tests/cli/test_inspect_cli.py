"""lawa inspect: what it prints where, how it exits, and what it loads."""

import io
import json
import subprocess
import sys

import pytest
from rich.console import Console

from lawa.cli import main
from lawa.pretrain import run as runs
from lawa.pretrain.config import Config
from lawa.pretrain.settings import build


@pytest.fixture(scope="module")
def run(settings, tmp_path_factory):
    directory = tmp_path_factory.mktemp("inspected") / "run"
    runs.start(build(Config, settings), directory, console=Console(file=io.StringIO()))
    return directory


def test_plain_lines_name_a_thing_once(run, capsys):
    assert main(["inspect", str(run)]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    lines = shown.out.splitlines()
    assert lines[0].startswith(f"run            run ({run}), ")
    assert "average        lawa: window 3, every 2, uniform" in lines
    assert "               ema: EMA beta 0.9, every 1" in lines
    assert sum(line.startswith("checkpoint ") for line in lines) == 1


def test_json_is_what_was_found(run, capsys):
    assert main(["inspect", str(run), "--json", "--verify"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["standing"]["update"]) == ("run", 12)
    assert {one["manifest"] for one in found["checkpoints"]} == {"digests"}


def test_a_table_on_a_terminal(run, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert main(["inspect", str(run / "averages" / "lawa" / "step00000012")]) == 0
    shown = capsys.readouterr().out
    assert "\x1b[1m average" in shown or "\x1b[1maverage" in shown
    assert "the snapshots of updates 8, 10, 12" in shown


def test_damage_exits_with_1_and_says_what_is_damaged(run, capsys):
    weights = run / "checkpoints" / "step00000004" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    try:
        assert main(["inspect", str(run)]) == 1
        shown = capsys.readouterr()
        assert f"update 4, 79.6 kB, DAMAGED: {weights} has " in shown.out
        assert shown.err.startswith(f"lawa inspect: {weights} has {len(whole) - 1} bytes")
        assert shown.err.count("\n") == 1
        assert main(["inspect", str(weights.parent)]) == 1
        assert capsys.readouterr().out == ""
    finally:
        weights.write_bytes(whole)


def test_a_wrong_path_exits_with_2(tmp_path, capsys):
    nowhere = tmp_path / "nowhere"
    assert main(["inspect", str(nowhere)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == f"lawa inspect: {nowhere} is no directory; give a run of lawa train, or a checkpoint\n"


def test_no_torch_is_loaded(run):
    script = (
        "import sys, lawa.cli\n"
        f"for path in ({str(run)!r}, {str(run / 'final')!r}):\n    assert lawa.cli.main(['inspect', path]) == 0\n"
        "print([name for name in ('torch', 'transformers', 'accelerate') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
