"""The command line: what it prints where, how it exits, and what it loads."""

import json
import subprocess
import sys

import pytest
import yaml

from lawa.cli import VERBS, main
from lawa.pretrain.config import Config
from lawa.pretrain.settings import walk
from lawa.version import __version__


def lawa(*arguments, **more):
    return subprocess.run([sys.executable, "-m", "lawa.cli", *arguments], capture_output=True, text=True, **more)


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
        (["train", "--resume", "run", "--training.lr", "3"], 2, "give nothing else with it"),
        (["train", "--resume", "nowhere"], 2, "nowhere is no run"),
        (["train", "c.yaml", "--output", "run"], 1, "nowhere does not exist"),
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
