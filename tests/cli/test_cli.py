"""The command line: what it prints where, how it exits, and what it loads."""

import json
import re
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors import SafetensorError

from lawa.cli import VERBS, main, train
from lawa.pretrain.config import Config
from lawa.pretrain.loop import Loop
from lawa.settings import walk
from lawa.version import __version__


def lawa(*arguments, **more):
    return subprocess.run([sys.executable, "-m", "lawa", *arguments], capture_output=True, text=True, **more)


def loaded_by(code):
    """Which heavy modules a fresh interpreter has loaded after `code`."""
    heavy = ("torch", "numpy", "transformers", "matplotlib", "plotly", "rich", "yaml", "tokenizers")
    script = (
        f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint([m for m in {heavy!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([verb, "--help"] for verb in VERBS)])
def test_help_loads_nothing_heavy(arguments):
    assert loaded_by(f"import lawa.cli; lawa.cli.main({arguments!r})") == "[]"


def test_that_test_can_fail():
    assert loaded_by("import lawa.cli, lawa; lawa.WeightAverager").startswith("['torch'")


def test_help_documents_every_verb_and_every_setting():
    assert all(verb in lawa("--help").stdout for verb in VERBS)
    shown = lawa("train", "--help").stdout
    usage = "usage: lawa train CONFIG.yaml --output RUN [options]\n       lawa train --resume RUN [options]\n\n"
    assert shown.startswith(usage)
    assert "--training.precision fp32|bf16|fp16\n" in shown
    assert "neox-2023-linear (default cosine)" in " ".join(shown.split())
    for path, field, _ in walk(Config):
        assert f"--{path} " in shown, path
        assert field.metadata["help"].split()[0] in shown


def test_version():
    assert lawa("--version").stdout == f"lawa {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ([], 2, "required: VERB"),
        (["trane"], 2, "invalid choice: 'trane'"),
        (["train"], 2, "name a configuration and where the run goes"),
        (["train", "no.yaml", "--output", "run"], 2, "no.yaml cannot be read"),
        (["train", "c.yaml", "--output", "run", "--training.lrr", "3"], 2, "unrecognized arguments: --training.lrr"),
        (["train", "c.yaml", "--output", "run", "--training.lr", "fast"], 2, "training.lr='fast' must be a number"),
        (["train", "c.yaml", "--output", "run", "--arm", "x"], 2, "c.yaml has no arm 'x'"),
        (["train", "c.yaml", "--resume", "run"], 2, "give only settings to change with it"),
        (["train", "c.yaml", "--output", "run", "--override"], 2, "--override belongs to --resume"),
        (["train", "--resume", "nowhere"], 2, "nowhere is no run"),
        (["train", "c.yaml", "--output", "run"], 1, "nowhere does not exist"),
        (["train", "c.yaml", "--output", "run", "--averaging.replace_every", "0"], 2, "averaging.replace_every=0"),
        (
            ["train", "c.yaml", "--output", "run", "--training.updates", "5"],
            2,
            "'lawa' (window 3, every 2, uniform) is",
        ),
        (["report", "nowhere", "--output", "r"], 2, "nowhere"),
    ],
)
def test_mistakes_get_one_sentence_and_a_code(tmp_path, settings, arguments, code, sentence):
    broken = {**settings, "data": {**settings["data"], "train": ["nowhere"], "store": "store"}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(broken))
    done = lawa(*arguments, cwd=tmp_path)
    assert done.returncode == code
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("data.train", "/data/my #1 corpus", ["/data/my #1 corpus"]),
        ("data.train", "/a/b: c", ["/a/b: c"]),
        ("data.train", "[a b, 2024_01]", ["a b", "2024_01"]),
        ("data.validation", "null", None),
        ("data.store", "2024_01", "2024_01"),
        ("data.store", "null", None),
        ("training.lr", "4e-3", "4e-3"),  # the setting's type makes it a number
        ("training.micro_batch", "null", None),
        ("model.overrides", "{n_layer: 2}", {"n_layer": 2}),
        ("averaging.coefficients", "[0.5, 0.5]", [0.5, 0.5]),
    ],
)
def test_a_flags_text_is_taken_as_it_is_where_text_is_wanted(path, text, value):
    hints = {path: hint for path, _, hint in walk(Config)}
    assert train._value(path, text, hints[path]) == value


def raising(error):
    def run(given):
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (PermissionError(13, "Permission denied", "/data/run"), "/data/run: Permission denied; mend that"),
        (OSError(28, "No space left on device"), "No space left on device; mend that"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried\nmore"),
            r"out of memory \(CUDA out of memory. Tried\); use",
        ),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 9"), "see whether the disk is full"),
        (SafetensorError("I/O error: No space left"), "see whether the disk is full"),
    ],
)
def test_the_worlds_faults_get_one_sentence_too(monkeypatch, capsys, error, sentence):
    monkeypatch.setattr(train, "run", raising(error))
    assert main(["train"]) == 1
    shown = capsys.readouterr()
    assert re.match(f"lawa train: .*{sentence}", shown.err)
    assert shown.err.count("\n") == 1
    with pytest.raises(type(error)):
        main(["train", "--traceback"])
    monkeypatch.setattr(train, "run", raising(RuntimeError("a mistake of ours")))
    with pytest.raises(RuntimeError):
        main(["train"])


def test_an_unwritable_place(tmp_path, settings):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "file").touch()
    done = lawa("train", "c.yaml", "--output", "file/run", cwd=tmp_path)
    assert done.returncode == 1
    assert "lawa train: file/run: Not a directory" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("at", "way"), [(1, "it has no checkpoint yet; remove RUN and start anew"),
                                         (5, "go on after update [24] with: lawa train --resume RUN")])  # fmt: skip
def test_ctrl_c_says_how_to_go_on(tmp_path, settings, monkeypatch, capsys, at, way):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    step = Loop.step

    def interrupted(self, t):
        if t == at:
            raise KeyboardInterrupt
        return step(self, t)

    monkeypatch.setattr(Loop, "step", interrupted)
    run = tmp_path / "run"
    assert main(["train", str(tmp_path / "c.yaml"), "--output", str(run)]) == 130
    shown = capsys.readouterr()
    # Whether the checkpoint of update 4 was written by then is a matter of milliseconds.
    assert re.search(f"lawa train: interrupted; {way.replace('RUN', re.escape(str(run)))}\n$", shown.err)
    assert shown.out == ""


def test_traceback_when_asked(tmp_path):
    done = lawa("train", "no.yaml", "--output", "run", "--traceback", cwd=tmp_path)
    assert "Traceback" in done.stderr


def test_the_main_job_from_the_command_line(tmp_path, settings, capsys):
    """Train, resume nothing, report: results on stdout, the rest on stderr."""
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    run = tmp_path / "run"
    assert main(["train", str(tmp_path / "c.yaml"), "--output", str(run), "--training.updates", "8", "--json"]) == 0
    shown = capsys.readouterr()
    result = json.loads(shown.out)
    assert set(result["losses"]) == {"plain", "lawa", "ema"}
    assert "validation: plain" in shown.err
    assert main(["report", str(run), "--output", str(tmp_path / "report")]) == 0
    shown = capsys.readouterr().out
    assert str(tmp_path / "report" / "losses.png") in shown
    assert {file.name for file in (tmp_path / "report").iterdir()} >= {"report.html", "losses.png", "summary.json"}
    arms = json.loads((tmp_path / "report" / "summary.json").read_text())["arms"]
    assert result["losses"]["lawa"] in [arm["final_loss"] for arm in arms]
