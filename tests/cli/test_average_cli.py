"""lawa average: what it prints where, how it exits, and what it loads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lawa.cli import main


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step in (100, 200, 300):
        directory = tmp_path / "run" / f"step{step}"
        directory.mkdir(parents=True)
        save_file(
            {"w": torch.full((4,), float(step)), "attn.bias": torch.ones(1, 1, 4, 4)}, directory / "model.safetensors"
        )
    return tmp_path / "run"


def test_an_average_is_said_on_stdout_and_nothing_else(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["average", str(run), "--last", "2", "--output", str(out), "--verify", "--digest"]) == 0
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == (f"{out}: average of 2\n", "")
    assert load_file(out / "model.safetensors")["w"].tolist() == [250.0] * 4
    assert "sha256" in json.loads((out / "manifest.json").read_text())["files"]["model.safetensors"]


def test_every_setting_arrives(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "average", *(str(run / f"step{step}") for step in (300, 100, 200)), "--output", str(tmp_path / "out"),
        "--rolling", "--steps", "100:300:100", "--window", "1,2", "--spacing", "2", "--coefficients", "linear",
        "--coefficients", "0.25,0.75", "--dtype", "float64", "--out-dtype", "bfloat16", "--buffers", "latest",
        "--ties", "untie", "--shard-size", "8", "--threads", "1", "--json",
    ]  # fmt: skip
    assert main(command) == 2  # a window of 1 has no two coefficients
    assert "2 coefficients were given for 1 snapshots" in capsys.readouterr().err
    command[command.index("1,2")] = "2"
    assert main(command) == 0
    shown = capsys.readouterr()
    assert shown.err == "lawa average: no whole window of 2 ends at the first 2 of the 3 steps; skipped\n"
    done = json.loads(shown.out)["averages"]
    both = [str(run / "step100"), str(run / "step300")]
    assert [
        (Path(one["path"]).relative_to(tmp_path).as_posix(), one["inputs"], one["coefficients"]) for one in done
    ] == [
        ("out/linear/step00000300", both, [1 / 3, 2 / 3]),
        ("out/explicit/step00000300", both, [0.25, 0.75]),
    ]
    output = Path(done[1]["path"])
    shards = {name: tensor for file in output.glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert len(list(output.glob("*.safetensors"))) == 2
    assert (shards["w"].tolist(), shards["w"].dtype) == ([250.0] * 4, torch.bfloat16)
    assert shards["attn.bias"].dtype == torch.float32
    assert json.loads((output / "provenance.json").read_text())["accumulate"] == "float64"


def test_a_dry_run_prints_the_plan(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["average", str(run), "--output", str(tmp_path / "out"), "--dry-run", "--threads", "2"]
    assert main([*command, "--coefficients", "linear"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == f"input {run}/step100, step 100, hf, 2 tensors of float32, 80 B"
    assert f"output {tmp_path}/out: of 3, {run}/step100 … {run}/step300, coefficients 0.1667, 0.3333, 0.5" in lines
    assert "reads 48 B" in lines
    assert "averages 1 tensors, of 4 elements in all" in lines
    assert "leaves out attn.bias" in lines
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tensors"]["dropped"] == ["attn.bias"]
    save_file({"w": torch.full((4,), 100.0)}, run / "step300" / "model.safetensors")
    assert main(command) == 0
    assert f"SAME CONTENT {run}/step100 and {run}/step300" in " ".join(capsys.readouterr().out.split())
    assert not (tmp_path / "out").exists()


def test_duplicates_that_are_allowed_are_not_looked_for(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(catalogs: object) -> list[list[int]]:
        raise AssertionError("compared")

    monkeypatch.setattr("lawa.offline.duplicates.find", find)
    command = ["average", str(run), "--output", str(tmp_path / "out")]
    assert main([*command, "--allow-duplicates"]) == 0
    with pytest.raises(AssertionError, match="compared"):
        main([*command, "--overwrite"])


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["nowhere/at/all"], 1, "nowhere/at/all does not exist; name a checkpoint, a run's directory, or ORG/NAME"),
        (["run", "--steps", "100:400:100"], 1, "run has no checkpoint of step 400; it has 100, 200, 300"),
        (["run", "--steps", "x"], 2, "steps='x' is not A:B:S"),
        (["run", "--rolling"], 2, "a window's size is missing: give --window K"),
        (["run", "--window", "two"], 2, "argument --window: 'two' is no whole number; write 5, or 3,5,10"),
        (["run", "--coefficients", "steep"], 2, "coefficients='steep' is unknown"),
        (["run", "--output", "run/step100/x"], 2, "run/step100/x lies in the input run/step100"),
        (["run", "--output", "run"], 2, "run exists already; choose another --output"),
        (["notes.txt"], 1, "notes.txt is neither safetensors nor of torch.save"),
        (["run", "org/name", "--offline"], 1, "org/name@main is not in its cache"),
        (["run", "run/step100"], 1, "step100 have the same content"),
    ],
)
def test_mistakes_get_one_sentence_and_a_code(
    run: Path, arguments: list[str], code: int, sentence: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(run.parent)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(run.parent / "cache"))
    Path("notes.txt").write_text("no weights")
    arguments = arguments if "--output" in arguments else [*arguments, "--output", "out"]
    try:
        exit_code = main(["average", *arguments])
    except SystemExit as usage:
        exit_code = usage.code
    shown = capsys.readouterr()
    assert exit_code == code
    assert sentence in shown.err
    assert shown.out == ""
    assert not Path("out").exists()


def test_a_line_tells_how_far_it_is_where_there_is_no_terminal(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lawa.cli.average._LINE_EVERY", -1)
    assert main(["average", str(run), "--output", str(tmp_path / "out")]) == 0
    told = ["reading: 33%", "reading: 67%", "reading: 100%", "averaging: 0%", "averaging: 100%"]
    assert capsys.readouterr().err.splitlines() == told


def test_a_dry_run_and_an_average_of_safetensors_load_no_torch(run: Path, tmp_path: Path) -> None:
    script = (
        "import sys, lawa.cli\n"
        f"for more in (['--dry-run'], []):\n"
        f"    assert lawa.cli.main(['average', {str(run)!r}, '--output', {str(tmp_path / 'out')!r}, *more]) == 0\n"
        "print([name for name in ('torch', 'transformers', 'huggingface_hub') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
