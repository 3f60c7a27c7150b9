"""What may go wrong in days of training: each is one sentence on stderr, and nothing that was complete is lost."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from lawa import cli, records
from lawa.checkpoints.find import step_directories
from lawa.checkpoints.publish import is_published, verify
from lawa.pretrain.checkpoint import whole
from lawa.settings import merge
from pretrain.driving import killed_in, train
from twins import same_bits

UPDATES = 12


@pytest.fixture(scope="module")
def replacing(settings):
    """Checkpoints of 3, 6, 9 and 12, two of them resumable; captures of 2, 4, …"""
    return merge(settings, {"averaging": {"mode": "replace", "replace_with": "lawa"}, "checkpoints": {"every": 3}})


@pytest.fixture(scope="module")
def undisturbed(replacing, tmp_path_factory):
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    train(replacing, run)
    return run


@pytest.fixture(scope="module")
def interrupted(replacing, tmp_path_factory):
    """Killed in update 11, with checkpoints of 6 and 9 to go on from."""
    run = tmp_path_factory.mktemp("interrupted") / "run"
    with pytest.MonkeyPatch.context() as patch:
        killed_in(patch, replacing, run, at=11)
    return run


@pytest.fixture
def run(interrupted, tmp_path):
    return Path(shutil.copytree(interrupted, tmp_path / "run"))


@pytest.fixture
def lawa(capsys):
    """Run the command line; its exit code and what it said at last."""

    def call(*arguments):
        code = cli.main(["train", *map(str, arguments)])
        said = capsys.readouterr().err
        assert "Traceback" not in said
        return code, said.splitlines()[-1] if said else ""

    return call


def checkpoint(run, update):
    return run / "checkpoints" / f"step{update:08d}"


def assert_ends_as(run, expected):
    """The same final weights and the same records, but for how long things took."""
    mine, other = (load_file(each / "final" / "model.safetensors") for each in (run, expected))
    assert mine.keys() == other.keys()
    assert all(same_bits(mine[name], tensor) for name, tensor in other.items())
    told = [[{**one, "seconds": None} for one in records.read(each / "metrics.jsonl")] for each in (run, expected)]
    assert told[0] == told[1]
    assert list(run.rglob("*.partial")) == []


# ---- the disk


@pytest.mark.parametrize("written", ["write_weights", "write_training"])
def test_a_full_disk_behind_training_loses_nothing_that_was_whole(
    replacing, undisturbed, tmp_path, monkeypatch, lawa, written
):
    """The writer's thread fails in the checkpoint of update 9, whose files are already partly there."""
    run, config = tmp_path / "run", tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(replacing))
    write = getattr(whole, written)

    def full(directory, *arguments):
        write(directory, *arguments)
        if "checkpoints/.step00000009" in str(directory):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory / "file"))

    with monkeypatch.context() as patched:
        patched.setattr(whole, written, full)
        code, said = lawa(config, "--output", run)
    assert code == 1
    assert "No space left on device" in said
    assert list(step_directories(run / "checkpoints")) == [3, 6]
    for update in (3, 6):
        verify(checkpoint(run, update))
        verify(checkpoint(run, update) / "training")
    assert list(run.rglob("*.partial")) == []
    assert lawa("--resume", run)[0] == 0
    assert_ends_as(run, undisturbed)


def truncate(file):
    file.write_bytes(file.read_bytes()[:-1])


def alter(file):
    """Another byte in the middle of a copy: the file may be linked from an earlier checkpoint."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.unlink()
    file.write_bytes(content)


DAMAGED = [
    (alter, "model.safetensors"),
    (alter, "config.json"),
    (alter, "training/optimizer.safetensors"),
    (alter, "training/state.json"),
    (alter, "training/running/ema.safetensors"),
    (alter, "training/snapshots/00000008.safetensors"),
    (truncate, "training/optimizer.safetensors"),
    (truncate, "config.json"),
    (Path.unlink, "config.json"),
    (Path.unlink, "training/state.json"),
]


@pytest.mark.parametrize(("damage", "name"), DAMAGED)
def test_a_damaged_file_is_named_and_the_earlier_checkpoint_goes_on_as_told(run, lawa, undisturbed, name, damage):
    damage(checkpoint(run, 9) / name)
    before = sorted(run.rglob("*"))
    code, said = lawa("--resume", run)
    assert code == 1
    assert str(checkpoint(run, 9) / name) in said
    told = re.search(r"or remove (\S+) to go on from step00000006$", said)
    assert told, said
    assert sorted(run.rglob("*")) == before
    shutil.rmtree(told[1])
    assert lawa("--resume", run)[0] == 0
    assert_ends_as(run, undisturbed)


@pytest.mark.parametrize("name", ["manifest.json", "training/manifest.json"])
def test_a_checkpoint_without_its_manifest_does_not_exist_and_is_not_written_over(run, lawa, undisturbed, name):
    (checkpoint(run, 9) / name).unlink()
    code, said = lawa("--resume", run)
    assert code == 1
    assert f"{checkpoint(run, 9)} is later than step00000006" in said
    assert "move it elsewhere" in said
    checkpoint(run, 9).rename(run.parent / "elsewhere")
    assert lawa("--resume", run)[0] == 0
    assert json.loads((run / "run.json").read_text())["resumed"][0]["update"] == 6
    assert_ends_as(run, undisturbed)


@pytest.mark.parametrize("name", ["manifest.json", "training/manifest.json"])
@pytest.mark.parametrize("damage", [truncate, alter])
def test_a_damaged_manifest_is_named_too(run, lawa, undisturbed, name, damage):
    file = checkpoint(run, 9) / name
    if damage is alter:
        file.write_text(file.read_text().replace('"sha256": "', '"sha256": "0', 1))
    else:
        file.write_text(file.read_text()[:-20])
    code, said = lawa("--resume", run)
    assert code == 1
    assert str(checkpoint(run, 9)) in said
    told = re.search(r"or remove (\S+) to go on from step00000006$", said)
    assert told, said
    shutil.rmtree(told[1])
    assert lawa("--resume", run)[0] == 0
    assert_ends_as(run, undisturbed)


def test_damage_that_an_earlier_checkpoint_shares_is_not_hidden(run, lawa):
    """Snapshots are linked from checkpoint to checkpoint: what hits the blocks of one file hits both."""
    linked, first = (checkpoint(run, update) / "training/snapshots/00000006.safetensors" for update in (9, 6))
    linked.unlink()
    linked.hardlink_to(first)  # as in the run that `run` is a copy of
    with linked.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x55")
    code, said = lawa("--resume", run)
    assert code == 1
    assert said.endswith("put the file back: there is no earlier checkpoint to go on from")


# ---- another run than before


def test_another_corpus_is_refused(replacing, corpus, tmp_path, monkeypatch, lawa):
    run, store = tmp_path / "run", tmp_path / "store"
    killed_in(monkeypatch, replacing, run, at=5, data={"store": str(store)})
    shutil.rmtree(store)
    train(replacing, tmp_path / "other", data={"store": str(store), "seed": 5})
    code, said = lawa("--resume", run)
    assert code == 1
    assert re.search(r"store holds other tokens than the run began with .*put its own store back, or start anew", said)


SAFE = ["--evaluation.every", "6", "--checkpoints.every", "4", "--checkpoints.keep", "2", "--training.log_every", "3",
        "--training.micro_batch", "2"]  # fmt: skip


def test_what_does_not_make_it_another_run_may_change(run, lawa):
    assert lawa("--resume", run, *SAFE)[0] == 0
    assert list(step_directories(run / "checkpoints")) == [9, 12]
    described = json.loads((run / "run.json").read_text())
    assert described["resumed"][0]["changed"]["checkpoints.every"] == {"was": 3, "is": 4}
    assert yaml.safe_load((run / "config.yaml").read_text())["evaluation"]["every"] == 6


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--training.lr", "0.02"], "training.lr was 0.01 and is 0.02: that makes it another run"),
        (["--training.batch", "8"], "training.batch was 4 and is 8"),
        (["--training.updates", "10"], "training.updates was 12 and is 10"),
        (["--training.sharding", "fsdp2"], "training.sharding was none and is fsdp2"),
        (["--seed", "3"], "seed was 0 and is 3"),
        (["--averaging.mode", "evaluate", "--averaging.replace_with", "null"], "averaging.mode was replace"),
    ],
)
def test_what_makes_it_another_run_is_refused(run, lawa, flags, sentence):
    before = {path: path.read_bytes() for path in (run / "config.yaml", run / "run.json", run / "metrics.jsonl")}
    code, said = lawa("--resume", run, *flags)
    assert code == 2
    assert sentence in said
    assert "give --override to go on all the same, which is recorded" in said
    assert {path: path.read_bytes() for path in before} == before


def test_what_is_overridden_is_recorded(run, lawa, undisturbed):
    assert lawa("--resume", run, "--training.lr", "0.02", "--override")[0] == 0
    (resumed,) = json.loads((run / "run.json").read_text())["resumed"]
    assert resumed["changed"] == {"training.lr": {"was": 0.01, "is": 0.02}}
    assert yaml.safe_load((run / "config.yaml").read_text())["training"]["lr"] == 0.02
    with pytest.raises(AssertionError):
        assert_ends_as(run, undisturbed)


def test_a_finished_run_trains_on_when_it_is_given_more_updates(undisturbed, tmp_path, lawa):
    run = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    before = load_file(run / "final" / "model.safetensors")
    code, said = lawa("--resume", run, "--training.updates", "12")
    assert code == 1
    assert "is finished; its model is in" in said
    assert lawa("--resume", run, "--training.updates", "10")[0] == 1
    assert is_published(run / "final")
    assert lawa("--resume", run, "--training.updates", "18")[0] == 0
    assert list(step_directories(run / "checkpoints"))[-2:] == [15, 18]
    after = load_file(run / "final" / "model.safetensors")
    assert not any(same_bits(after[name], tensor) for name, tensor in before.items() if tensor.ndim == 2)
    assert [one["update"] for one in records.read(run / "metrics.jsonl") if one["kind"] == "end"] == [18]


def test_a_loss_that_is_not_finite_ends_it_before_anything_is_saved(replacing, tmp_path, lawa):
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump(merge(replacing, {"training": {"lr": 1e30, "clip": 0, "log_every": 1, "updates": 40}}))
    )
    code, said = lawa(tmp_path / "config.yaml", "--output", tmp_path / "run")
    assert code == 1
    update = re.search(r"the training loss is nan at update (\d+); earlier checkpoints are whole. Lower", said)
    assert update, said
    assert all(step < int(update[1]) for step in step_directories(tmp_path / "run" / "checkpoints"))


# ---- several processes


def torchrun(*arguments):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1",
        "--nproc-per-node", "2", "-m", "lawa", "train", *map(str, arguments),
    ]  # fmt: skip
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def workers(launcher):
    """The process ids of rank 0 and rank 1."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    ranks = {}
    for child in children:
        environment = dict(one.partition("=")[::2] for one in Path(f"/proc/{child}/environ").read_text().split("\0"))
        if "RANK" in environment:
            ranks[int(environment["RANK"])] = int(child)
    return ranks[0], ranks[1]


def until(process, text):
    """Read its stderr up to the line with `text`."""
    for line in process.stderr:
        if text in line:
            return
    raise AssertionError(f"it ended without {text!r}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lost", "sharding"),
    [
        (0, "none"),
        pytest.param(1, "none", marks=pytest.mark.exhaustive),
        pytest.param(0, "fsdp2", marks=pytest.mark.exhaustive),
        (1, "fsdp2"),
    ],
)
def test_a_lost_rank_ends_the_run_with_a_sentence_and_it_goes_on(replacing, tmp_path, sharding, lost):
    run, config = tmp_path / "run", tmp_path / "config.yaml"
    long = {"training": {"updates": 100_000, "sharding": sharding}, "checkpoints": {"every": 50, "keep": 2}}
    config.write_text(yaml.safe_dump(merge(merge(replacing, long), {"evaluation": {"every": 50}})))
    with torchrun(config, "--output", run) as launcher:
        try:
            until(launcher, "update    100/")
            began = time.monotonic()
            os.kill(workers(launcher)[lost], signal.SIGKILL)
            said = launcher.communicate(timeout=60)[1]
        finally:
            launcher.kill()
    assert time.monotonic() - began < 30
    assert launcher.returncode != 0
    ours = [line for line in said.splitlines() if line.startswith("lawa train: ")]
    assert len(ours) == 1, said
    assert f"rank {1 - lost} lost another process of the run" in ours[0]
    assert re.search(rf"go on after update \d+ with: lawa train --resume {run}$", ours[0])
    assert "src/lawa" not in said, "torchrun's own traceback is no business of ours"
    last = max(step_directories(run / "checkpoints"))
    with torchrun("--resume", run, "--training.updates", str(last + 200), "--override") as launcher:
        try:
            said = launcher.communicate(timeout=60)[1]
        finally:
            launcher.kill()
    assert launcher.returncode == 0, said
    assert is_published(run / "final")
