"""lawa inspect of trajectories: what is told of them, of an update, of a batch."""

import hashlib
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from lawa.cli import main
from lawa.data.batches import open_batches
from lawa.trajectories.inspect import ranges
from lawa.trajectories.registry import find, names


def shown(capsys):
    out = capsys.readouterr().out
    return [" ".join(line.split()) for line in out.splitlines()]


@pytest.fixture
def held(monkeypatch):
    """The batches of any trajectory are these, whatever is asked for, which is noted."""
    asked = []

    def batches_for(trajectory, updates, *, place=None, offline=False):
        asked.append((trajectory.name, updates, offline))
        rows = np.arange(1024 * 2049).reshape(1024, 2049) % 50_000
        return SimpleNamespace(rows=lambda t: rows, describe=lambda: {"kind": "preshuffled", "known": "all of it"})

    monkeypatch.setitem(sys.modules, "lawa.trajectories.data", SimpleNamespace(batches_for=batches_for))
    return asked


def test_all_are_listed(capsys):
    assert main(["inspect"]) == 0
    lines = shown(capsys)
    assert len(lines) == len(names())
    assert lines[0].startswith("llm360 amber: 360 checkpoints, 274,320 updates, 1,258.4 B tokens, data chunks")
    told = "143,000 updates, 299.9 B tokens, data preshuffled, optimizer states neox"
    assert f"pythia-160m: 154 checkpoints, {told}" in lines
    assert "k2-stage2: 1 checkpoint, 380 updates, no data" in lines
    assert main(["inspect", "--trajectories", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in listed["trajectories"]] == names()


def test_a_trajectory(capsys):
    assert main(["inspect", "pythia-2.8b"]) == 0
    lines = shown(capsys)
    for line in (
        "trajectory pythia-2.8b (EleutherAI/pythia-2.8b)",
        "revisions 154 checkpoints, step{step}; main is of update 143,000",
        "steps 0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000:143000:1000",
        "training 143,000 updates of 1,024 sequences of 2,048 tokens: 299.9 B tokens",
        "learning rate neox-1.0-cosine from 0.00016",
        "0 at update 1",
        "0.00016 at update 1,431",
        "1.6e-05 at update 143,000",
        "data preshuffled: EleutherAI/pile-standard-pythia-preshuffled, 21 files",
        "54000, 56000:59000:1000, 61000:64000:1000: its weights are those of step143000 (pythia issue 205)",
    ):
        assert line in lines, line
    assert any(line.startswith("bad 0, 1, 2, 4, ") and line.endswith("(pythia issues 195, 205)") for line in lines)
    assert any("unverified: " in line for line in lines)


def test_json_has_everything(capsys):
    assert main(["inspect", "pythia-160m", "--step", "72000", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    run = find("pythia-160m")
    assert (found["kind"], found["checkpoints"], found["tokens"]) == ("named trajectory", 154, 299_892_736_000)
    assert found["lr"][0] == {"update": 1, "lr": 0.0}
    assert [one["update"] for one in found["lr"]] == [1, 1431, 35_750, 71_500, 107_250, 143_000]
    assert found["step"] == {
        "update": 72_000,
        "revision": "step72000",
        "lr": run.rate(72_000),
        "next_lr": run.rate(72_001),
        "tokens": 72_000 * 1024 * 2048,
        "next_batch": 72_000,
        "bad": None,
    }


@pytest.mark.parametrize(
    ("name", "step", "told"),
    [
        ("pythia-160m", 0, ["at update 0: step0", "0 tokens (0)", "the next one's learning rate 0",
                            "next is batch 0, counted from 0: that of update 1"]),
        ("pythia-160m", 143_000, ["at update 143,000: step143000", "299.9 B tokens (299,892,736,000)",
                                  "this update's learning rate 6e-05"]),
        ("pythia-160m", 72_500, ["at update 72,500: no checkpoint", "152.0 B tokens (152,043,520,000)",
                                 "this update's learning rate 0.000302841", "the next one's learning rate 0.000302834",
                                 "next is batch 72,500, counted from 0: that of update 72,501"]),
        ("pythia-12b", 50_000, ["at update 50,000: step50000, which is BAD: its first shard is the final model's "
                                "(pythia issue 206)", "104.9 B tokens (104,857,600,000)"]),
        ("k2-stage2", 374, ["at update 374: ministage2_ckpt_374", "next is batch 374, counted from 0: that of update "
                            "375"]),
    ],
)  # fmt: skip
def test_at_an_update(capsys, name, step, told):
    assert main(["inspect", name, "--step", str(step)]) == 0
    lines = shown(capsys)
    at = next(index for index, line in enumerate(lines) if line.startswith("at update "))
    assert lines[at : at + len(told)] == told
    assert len(lines) == at + len(told) or name == "pythia-12b"


def test_another_rule_of_the_rate(capsys):
    assert main(["inspect", "pythia-14m", "--schedule", "neox-2023-cosine", "--step", "100001"]) == 0
    assert f"this update's learning rate {find('pythia-14m').scheduled('neox-2023-cosine').rate(100_001):.6g}" in shown(
        capsys
    )


def test_a_users_yaml_file(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text("repo: me/mine\nrevisions: step{step}\ninterval: 10\ntotal: 40\n")
    assert main(["inspect", str(path)]) == 0
    lines = shown(capsys)
    for line in ("trajectory mine (me/mine)", "steps 10:40:10", "training 40 updates; their size is not known",
                 "learning rate not known", "data its batches cannot be had", "optimizer no states are released",
                 "tokenizer me/mine; unknown rows of the embedding"):  # fmt: skip
        assert line in lines


def test_a_batch_as_text(own_run, capsys):
    """Of a run: its ids are those of the run's own order, its text that of its tokenizer."""
    run = find(own_run)
    assert main(["inspect", str(own_run), "--batch", "5", "--rows", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = open_batches({"run": {key: value for key, value in run.data.items() if key != "kind"}}).rows(6)
    assert (found["batch"], found["update"], found["shape"]) == (5, 6, [4, 17])
    assert found["digest"] == hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()
    assert [one["ids"] for one in found["rows"]] == rows[:2].tolist()
    assert (found["lowest"], found["highest"], found["vocab_size"]) == (rows.min(), rows.max(), run.vocab_size)
    assert found["tokenizer"]["missing"] is None
    assert all(len(one["text"].split()) > 3 for one in found["rows"])
    assert main(["inspect", str(own_run), "--batch", "5"]) == 0
    lines = shown(capsys)
    assert lines[:2] == [
        "batch 5 of run, counted from 0: that of update 6", "shape 4 sequences of 16 tokens, and one more",
    ]  # fmt: skip
    assert f"sequence 0 {' '.join(found['rows'][0]['text'].split())}" in lines
    assert sum(line.startswith("sequence ") for line in lines) == 3


def test_without_its_tokenizer_a_batch_is_ids(held, capsys):
    assert main(["inspect", "pythia-160m", "--batch", "72000", "--offline"]) == 0
    lines = shown(capsys)
    assert held == [("pythia-160m", range(72_001, 72_002), True)]
    assert lines[0] == "batch 72,000 of pythia-160m, counted from 0: that of update 72,001"
    assert "ids 0 … 49,999; the vocabulary has 50,304" in lines
    assert any(line.startswith("text not shown: ") for line in lines)
    assert any(line.startswith("sequence 0 0 1 2 3 4 5 ") and line.endswith(" 23 …") for line in lines)


def test_ids_beyond_the_vocabulary_are_not_this_runs(held, tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    told = "repo: me/mine\nrevisions: step{step}\ninterval: 10\ntotal: 40\nbatch: 1024\ncontext: 2048\n"
    path.write_text(f"{told}vocab_size: 40000\ndata: {{kind: preshuffled}}\n")
    assert main(["inspect", str(path), "--batch", "3"]) == 1
    assert "batch 3 of mine holds the id 49999, and its vocabulary has 40000" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pythia-160m", "--batch", "143000"], "pythia-160m has no batch 143000: its batches are 0 … 142999"),
        (["pythia-160m", "--step", "143001"], "pythia-160m has no update 143001: its updates are 1 … 143000"),
        (["pythia-16m"], "no trajectory is called pythia-16m; did you mean pythia-160m?"),
        (["pythia-160m", "--tensors"], "--tensors is of checkpoints; name one, as ORG/NAME@REVISION"),
        (["pythia-160m", "--batch", "1", "--step", "1"], "--batch shows a batch alone"),
        (["pythia-160m", "--trajectories"], "--trajectories lists them all; leave out pythia-160m, or the option"),
        (["--step", "5"], "--step is of one thing; name it"),
        (["nowhere-at-all"], "nowhere-at-all does not exist; give a run of lawa train, a checkpoint, or ORG/NAME"),
    ],
)
def test_wrong_usage(arguments, said, held, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", *arguments]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_a_repo_on_the_hub_stays_one(capsys):
    assert main(["inspect", "EleutherAI/pythia-160m", "--offline"]) == 1
    assert "EleutherAI/pythia-160m" in capsys.readouterr().err
    assert main(["inspect", "EleutherAI/pythia-160m", "--step", "1000"]) == 0
    assert "trajectory pythia-160m (EleutherAI/pythia-160m)" in shown(capsys)


def test_steps_in_few_words():
    assert ranges([]) == []
    assert ranges([5]) == ["5"]
    assert ranges([1, 2, 3]) == ["1", "2", "3"]
    assert ranges(range(10, 50, 10)) == ["10:40:10"]
    assert ranges([0, 1, 2, 4, 8, 10, 12, 14, 20]) == ["0", "1", "2", "4", "8:14:2", "20"]


def test_no_torch_is_loaded():
    script = (
        "import sys, lawa.cli\n"
        "assert lawa.cli.main(['inspect']) == 0\n"
        "assert lawa.cli.main(['inspect', 'olmo-2-7b', '--step', '1000']) == 0\n"
        "print([name for name in ('torch', 'transformers', 'huggingface_hub') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
