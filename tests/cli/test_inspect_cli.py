"""lawa inspect: what it prints where, how it exits, and what it loads."""

import io
import json
import shutil
import subprocess
import sys

import pytest
import torch
import torch.distributed.checkpoint as dcp
from rich.console import Console
from safetensors.torch import save

from hub_server import serving
from lawa.cli import main
from lawa.pretrain import run as runs
from lawa.pretrain.config import Config
from lawa.settings import build


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


def test_tensors_are_listed(run, tmp_path, capsys):
    """By the names that --ignore and --latest take, tied ones under each of theirs."""
    torch.save({"module.a": (a := torch.ones(2, 3)), "tied": a, "n": torch.tensor(1)}, tmp_path / "w.pt")
    assert main(["inspect", str(tmp_path / "w.pt"), "--tensors"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "tensors 2 with 7 parameters: 6 float32, 1 int64" in lines
    assert lines[-3:] == ["tensor a: float32 [2, 3]", "tied: float32 [2, 3]", "n: int64 []"]
    assert main(["inspect", str(tmp_path / "w.pt"), "--json"]) == 0
    listing = json.loads(capsys.readouterr().out)["listing"]
    assert listing[0] == {"name": "a", "dtype": "float32", "shape": [2, 3]}
    shutil.copytree(run / "final", tmp_path / "checkpoint-20")
    assert main(["inspect", str(tmp_path / "checkpoint-20"), "--tensors"]) == 0
    of_it = capsys.readouterr().out.split("tensor  ")[1]
    (tmp_path / "w.pt").unlink()
    assert main(["inspect", str(tmp_path), "--tensors"]) == 0
    assert capsys.readouterr().out.split("tensor  ")[1] == of_it, "of a folder, those of the latest one"
    assert main(["inspect", str(run), "--tensors"]) == 2
    assert "is a run; name one of its checkpoints to see tensors" in capsys.readouterr().err


def test_a_trainers_checkpoint_on_deepspeed_is_one_checkpoint(tmp_path, capsys):
    checkpoint = tmp_path / "checkpoint-5"
    (checkpoint / "global_step5").mkdir(parents=True)
    (checkpoint / "global_step5" / "zero_pp_rank_0_mp_rank_00_optim_states.pt").touch()
    (checkpoint / "latest").write_text("global_step5")
    assert main(["inspect", str(checkpoint)]) == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()][:2] == [
        ["checkpoint", f"{checkpoint},"], ["format", "deepspeed,"],
    ]  # fmt: skip


def test_a_wrong_path_with_one_slash_is_no_path_first(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main(["inspect", "runs/a"]) == 1
    assert capsys.readouterr().err.startswith(
        "lawa inspect: there is no path runs/a; for a repo of that name on the hub"
    )


def test_without_rich_there_are_plain_lines(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr("lawa.cli.average._LINE_EVERY", -1)
    assert main(["average", str(run / "final"), "--output", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{tmp_path / 'out'}: average of 1\n"
    assert "averaging: 100%" in shown.err.splitlines()
    assert main(["inspect", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.startswith("checkpoint     ")


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


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_no_torch_is_loaded(run, tmp_path):
    for step in (1, 2):
        dcp.save({"model": {"w": torch.ones(step)}}, checkpoint_id=tmp_path / f"step{step}", no_dist=True)
    paths = [str(run), str(run / "final"), str(tmp_path / "step1"), str(tmp_path)]
    dry = ["average", str(tmp_path / "step1"), "--output", str(tmp_path / "out"), "--dry-run"]
    script = (
        "import sys, lawa.cli\n"
        f"for path in {paths}:\n    assert lawa.cli.main(['inspect', path]) == 0\n"
        f"assert lawa.cli.main({dry}) == 0\n"
        "print([name for name in ('torch', 'transformers', 'accelerate') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
