"""SIGTERM and Ctrl-C, sent to a real `lawa train`: a checkpoint of that very update, one sentence, and it goes on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import pytest
import yaml
from safetensors.torch import load_file

from lawa import cli
from lawa.checkpoints.find import step_directories
from lawa.checkpoints.publish import is_published, verify
from lawa.pretrain import run as runs
from lawa.pretrain.config import Config
from lawa.settings import build, merge
from twins import same_bits

pytestmark = pytest.mark.slow

UPDATES = 300
# Something of the driver takes a minute where `{hold}` says, as a person with a second Ctrl-C must think.
HOLDING = """
import sys, time
import lawa.pretrain.loop as loop
from lawa.cli import main
from lawa.pretrain.checkpoint import whole
{hold}
sys.exit(main(sys.argv[1:]))
"""
LONG_UPDATE = """
step = loop.Loop.step
def held(self, t):
    if t == 25:
        print('HELD UP', file=sys.stderr, flush=True)
        time.sleep(60)
    return step(self, t)
loop.Loop.step = held
"""
LONG_WRITE = """
write = whole.write_training
def held(training, staged):
    if "step00000025" in str(training):
        print('HELD UP', file=sys.stderr, flush=True)
        time.sleep(60)
    write(training, staged)
whole.write_training = held
"""


@pytest.fixture(scope="module")
def given(settings):
    return merge(
        settings,
        {
            "training": {"updates": UPDATES},
            "averaging": {"mode": "replace", "replace_with": "lawa"},
            "evaluation": {"every": 10},
            "checkpoints": {"every": 10, "keep": 3, "save_averages": "last"},
        },
    )


@pytest.fixture(scope="module")
def undisturbed(given, tmp_path_factory):
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    runs.start(build(Config, given), run)
    return load_file(run / "final" / "model.safetensors")


@pytest.fixture
def begin(tmp_path, given):
    """Start `lawa train` on the settings, or a script that holds it up; ended with the test."""
    begun = []

    def start(hold=None, **sections):
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(merge(given, sections)))
        program = ["-m", "lawa"] if hold is None else ["-c", HOLDING.format(hold=hold)]
        command = [sys.executable, *program, "train", str(tmp_path / "config.yaml"), "--output", str(tmp_path / "run")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        heard = signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell may have started us without it
        try:
            begun.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment))
        finally:
            signal.signal(signal.SIGINT, heard)
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.communicate()


def until(process, text):
    """Read its stderr up to the line with `text`."""
    for line in process.stderr:
        if text in line:
            return
    raise AssertionError(f"it ended without {text!r}")


def last_words(process, seconds=20):
    """Its exit code, and what it said on stderr from now on."""
    said = process.communicate(timeout=seconds)[1]
    assert "Traceback" not in said
    return process.returncode, [line for line in said.splitlines() if not line.startswith("update ")]


def assert_ends_as_if_undisturbed(run, undisturbed, capsys):
    assert cli.main(["train", "--resume", str(run)]) == 0
    capsys.readouterr()
    mine = load_file(run / "final" / "model.safetensors")
    assert all(same_bits(mine[name], tensor) for name, tensor in undisturbed.items())
    assert list(run.rglob("*.partial")) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_it_with_a_checkpoint_of_that_update(begin, undisturbed, tmp_path, capsys, number, code):
    run = tmp_path / "run"
    process = begin(checkpoints={"every": 1000})
    until(process, "update     20/")
    process.send_signal(number)
    ended, said = last_words(process)
    assert ended == code
    ((update, directory),) = step_directories(run / "checkpoints").items()
    assert update >= 20
    assert said == [
        f"lawa train: stopped by {number.name} after update {update}; go on after update {update} with: "
        f"lawa train --resume {run}"
    ]
    verify(directory)
    verify(directory / "training")
    assert_ends_as_if_undisturbed(run, undisturbed, capsys)


def test_a_second_process_is_refused_while_one_trains(begin, tmp_path, capsys):
    process = begin(LONG_UPDATE)
    until(process, "HELD UP")
    assert cli.main(["train", "--resume", str(tmp_path / "run")]) == 1
    assert capsys.readouterr().err == (
        f"lawa train: {tmp_path / 'run'} is being trained by another process; wait for it, or choose another run\n"
    )


@pytest.mark.parametrize("hold", [LONG_UPDATE, LONG_WRITE], ids=["in an update", "in a write"])
def test_a_second_ctrl_c_stops_at_once(begin, undisturbed, tmp_path, capsys, hold):
    run = tmp_path / "run"
    process = begin(hold, checkpoints={"every": 5})
    until(process, "HELD UP")
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):  # the first one waits for the update, and for its checkpoint
        process.wait(1)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    ended, said = last_words(process)
    assert time.monotonic() - began < 10
    assert ended == 130
    assert said == [f"lawa train: interrupted; go on after update 20 with: lawa train --resume {run}"]
    assert [is_published(path) for path in step_directories(run / "checkpoints").values()] == [True] * 3
    assert_ends_as_if_undisturbed(run, undisturbed, capsys)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_during_tokenization_leaves_nothing_in_the_way(begin, tmp_path, number, code):
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 9))) for _ in range(3000)]
    for document in range(60):
        (tmp_path / f"{document}.txt").write_text(" ".join(draw.choices(words, k=60_000)))
    text = [str(path) for path in tmp_path.glob("*.txt")]
    process = begin(data={"train": text, "store": None, "workers": 2})
    deadline = time.monotonic() + 30
    while not (tmp_path / "run").exists() or not any("store" in path.name for path in (tmp_path / "run").iterdir()):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    ended, said = last_words(process)
    assert ended == code
    assert len(said) == 1
    assert said[0].startswith("lawa train: ")
    assert said[0].endswith("nothing was trained yet; start anew")
    # The same command works again, on less text.
    again = begin(data={"train": text[:12], "store": None, "workers": 1}, training={"updates": 10})
    assert last_words(again, 60)[0] == 0
