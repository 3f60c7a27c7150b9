"""lawa inspect: what it prints where, how it exits, and what it loads."""

import io
import json
import shutil
import subprocess
import sys

import pytest
import torch
from rich.console import Console
from safetensors.torch import save

from hub_server import serving
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
    assert shown.err.startswith(f"lawa inspect: {nowhere} does not exist; give a run of lawa train, a checkpoint, or ")
    assert shown.err.count("\n") == 1


def test_a_folder_of_checkpoints_and_a_file(run, tmp_path, capsys):
    for step in (20, 100):
        shutil.copytree(run / "final", tmp_path / f"checkpoint-{step}")
    assert main(["inspect", str(tmp_path)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[:2] == [f"trajectory {tmp_path}, 2 checkpoints", "steps 2 steps: 20, 100"]
    assert lines[3] == f"latest {tmp_path}/checkpoint-100, hf"
    assert main(["inspect", str(tmp_path / "checkpoint-20" / "model.safetensors"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["format"], found["dtypes"]) == ("checkpoint", "safetensors", {"float32": 16768})
    torch.save({"w": torch.ones(3)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert main(["inspect", str(tmp_path / "old.pt")]) == 0
    assert "tensors        known once it is loaded whole" in capsys.readouterr().out


def test_an_average_on_disk(run, tmp_path, capsys):
    """Of a run's, and of one that tells no step."""
    last = [str(run / "checkpoints" / f"step{step:08}") for step in (2, 4, 6, 8, 10, 12)]
    for inputs, said in [
        ([str(run)], ("of: 6 checkpoints on disk, uniform, at update 12", f"{', '.join(last[:3])}, … (6 in all)")),
        ([str(run / "final"), "--threads", "1"], ("of: 1 checkpoints on disk, uniform", str(run / "final"))),
    ]:
        out = tmp_path / str(len(inputs))
        assert main(["average", *inputs, "--output", str(out)]) == 0
        assert main(["inspect", str(out)]) == 0
        lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
        assert f"average {said[0]}" in lines
        assert f"made of {said[1]}, summed in float32" in lines


def test_a_repo_on_the_hub(tmp_path, monkeypatch, capsys):
    weights = save({"w": torch.ones(3, dtype=torch.bfloat16)})
    revisions = {name: {"model.safetensors": weights} for name in ("main", *(f"step{step}" for step in range(9)))}
    with serving({"org/tiny": revisions}, tmp_path / "cache", monkeypatch) as hub:
        assert main(["inspect", "org/tiny"]) == 0
        commit = hub.commit("org/tiny", "main")
        assert main(["inspect", "org/tiny@step99"]) == 1
    shown = capsys.readouterr()
    assert [" ".join(line.split()) for line in shown.out.splitlines()] == [
        f"repo org/tiny@main, commit {commit}",
        f"fetched not yet: {len(weights)} B would be",
        "tensors 1 with 3 parameters: 3 bfloat16",
        "revisions of 9 steps: 0, 1, 2, 3, 4, …, 7, 8",
    ]
    assert "lawa inspect: org/tiny has no revision 'step99'" in shown.err


def test_no_torch_is_loaded(run):
    script = (
        "import sys, lawa.cli\n"
        f"for path in ({str(run)!r}, {str(run / 'final')!r}):\n    assert lawa.cli.main(['inspect', path]) == 0\n"
        "print([name for name in ('torch', 'transformers', 'accelerate') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
