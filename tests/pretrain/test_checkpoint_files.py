"""The files of a checkpoint, written behind training: what they hold, and what training may do meanwhile."""

import json
import re
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import twins
from lawa.background import Writer
from lawa.checkpoints import publish as publishing
from lawa.checkpoints.find import step_directories, step_directory
from lawa.checkpoints.publish import listed, sha256, verify
from lawa.pretrain import run as runs
from lawa.pretrain.checkpoint import checkpoints as module
from lawa.pretrain.checkpoint.checkpoints import Checkpoints
from lawa.pretrain.checkpoint.staging import Stage
from lawa.pretrain.loop import Loop
from pretrain.driving import assert_same, killed_in, quiet, train, weights
from pretrain.test_run import read

# ---- written while training goes on


def behind(monkeypatch, last=12):
    """Each checkpoint is written, and what is old is let go, once training is at the next one."""
    trained = {update: threading.Event() for update in range(1, last + 1)}
    one_update, write, let_go = Loop.step, module.whole.write_weights, module.retain

    def step(self, t):
        result = one_update(self, t)
        trained[t].set()
        return result

    def wait(update):
        assert trained[min(update + 2, last)].wait(20)

    def write_weights(directory, model, tensors):
        if threading.current_thread().name == "lawa-writer":
            wait(int(re.findall(r"\d+", directory.name)[0]))
        write(directory, model, tensors)

    def retain(run, config):
        wait(max(step_directories(run / "checkpoints")))
        let_go(run, config)

    copy = Stage.copy

    def checked_copy(self, *arguments):
        assert all(thread.name != "lawa-writer" for thread in threading.enumerate()), "its memory is being written"
        return copy(self, *arguments)

    monkeypatch.setattr(Stage, "copy", checked_copy)
    monkeypatch.setattr(Loop, "step", step)
    monkeypatch.setattr(module.whole, "write_weights", write_weights)
    monkeypatch.setattr(module, "retain", retain)


def synchronous(monkeypatch):
    monkeypatch.setattr(Writer, "start", lambda self, work: work())


def watch(monkeypatch):
    """{update: the weights when its checkpoint was asked for}, cloned on the spot."""
    seen, save = {}, Checkpoints.save

    def noted(self, position):
        seen[position.update] = {name: t.detach().clone() for name, t in self.setup.model.state_dict().items()}
        save(self, position)

    monkeypatch.setattr(Checkpoints, "save", noted)
    return seen


def digests(run):
    return {
        file.relative_to(run).as_posix(): sha256(file)
        for file in sorted(run.rglob("*"))
        if file.is_file() and file.name not in NOT_BITS
    }


# Seconds and paths are in these.
NOT_BITS = {"state.json", "run.json", "config.yaml", "provenance.json", "manifest.json", "metrics.jsonl", ".lock"}

SETTINGS = {
    "evaluate": {},
    "replace": {"averaging": {"mode": "replace", "replace_with": "lawa", "moments": "average"}},
    "every update": {
        "averaging": {"averages": {"lawa": {"window": 3, "every": 1}}, "mode": "replace", "replace_with": "lawa"}
    },
    "no averages": {"checkpoints": {"save_averages": "none"}},
    "disk": {"averaging": {"placement": "disk"}, "checkpoints": {"keep": 1, "resumable": 1}},
    "disk, replace": {
        "averaging": {"placement": "disk", "mode": "replace", "replace_with": "lawa", "after_replace": "clear"},
        "checkpoints": {"keep": 1, "save_averages": "last"},
    },
}


@pytest.fixture(scope="module")
def plain(settings, tmp_path_factory):
    """A run that nothing disturbs."""
    run = tmp_path_factory.mktemp("runs") / "plain"
    train(settings, run)
    return run


@pytest.mark.parametrize("sections", SETTINGS.values(), ids=SETTINGS)
def test_a_checkpoint_holds_its_moment_whatever_training_does_meanwhile(settings, tmp_path, monkeypatch, sections):
    """Two more updates are done before a byte is written; the files are those of a run that waits for each."""
    with monkeypatch.context() as patched:
        behind(patched)
        seen = watch(patched)
        train(settings, tmp_path / "behind", **sections)
    with monkeypatch.context() as patched:
        synchronous(patched)
        train(settings, tmp_path / "waiting", **sections)
    left, right = digests(tmp_path / "behind"), digests(tmp_path / "waiting")
    assert left == right
    kept = step_directories(tmp_path / "behind" / "checkpoints")
    assert 12 in kept
    for update, directory in kept.items():
        assert_same(AutoModelForCausalLM.from_pretrained(directory).state_dict(), seen[update])
    # Replacement aside, a window's snapshots are the checkpoints of its updates.
    for update, directory in step_directories(tmp_path / "behind" / "averages" / "lawa").items():
        steps = json.loads((directory / "provenance.json").read_text())["snapshots"]
        if set(steps) <= set(seen):
            expected = {name: twins.uniform([twins.array(seen[step][name]) for step in steps]) for name in seen[update]}
            assert_same(AutoModelForCausalLM.from_pretrained(directory).state_dict(), expected)


# ---- snapshots in a training state


def snapshots(run):
    """{checkpoint's update: {snapshot's update: file}}"""
    return {
        update: {int(file.stem): file for file in sorted((path / "training" / "snapshots").iterdir())}
        for update, path in step_directories(run / "checkpoints").items()
        if (path / "training").exists()
    }


@pytest.fixture
def hashed(monkeypatch):
    """(folder, name) of every file that was read for its digest."""
    files = []

    def counted(file):
        files.append((file.parent.name, file.name))
        return sha256(file)

    monkeypatch.setattr(publishing, "sha256", counted)
    return files


def test_a_snapshot_is_written_and_read_once_and_then_linked(settings, tmp_path, monkeypatch, hashed):
    seen = watch(monkeypatch)
    run = tmp_path / "run"
    train(settings, run, checkpoints={"resumable": 3})
    held = snapshots(run)
    assert {update: list(files) for update, files in held.items()} == {8: [4, 6, 8], 10: [6, 8, 10], 12: [8, 10, 12]}
    assert held[8][8].samefile(held[10][8])
    assert held[10][8].samefile(held[12][8])
    assert held[10][10].samefile(held[12][10])
    written = [name for folder, name in hashed if folder == "snapshots"]
    assert sorted(written) == [f"{step:08d}.safetensors" for step in (2, 4, 6, 8, 10, 12)]
    manifests = {update: listed(step_directory(run / "checkpoints", update) / "training") for update in held}
    for update, files in held.items():
        verify(step_directory(run / "checkpoints", update) / "training")
        for step, file in files.items():
            assert manifests[update][f"snapshots/{file.name}"] == manifests[max(8, step)][f"snapshots/{file.name}"]
            saved = load_file(file)
            assert_same(saved, {name: seen[step][name] for name in saved})
            assert saved.keys() == seen[step].keys()


def test_several_snapshots_of_one_checkpoint_are_each_their_own(plain, settings, tmp_path):
    run = tmp_path / "run"
    train(settings, run, checkpoints={"every": 6, "save_averages": "none"})
    checkpoints = step_directories(plain / "checkpoints")
    for update, files in snapshots(run).items():
        assert list(files) == [update - 4, update - 2, update]
        for step, file in files.items():
            saved, expected = load_file(file), AutoModelForCausalLM.from_pretrained(checkpoints[step]).state_dict()
            assert_same(saved, {name: expected[name] for name in saved})


def refuse_links(monkeypatch):
    def refuse(self, target):
        raise PermissionError(1, "Operation not permitted", str(target))

    monkeypatch.setattr(Path, "hardlink_to", refuse)


@pytest.mark.parametrize("links", [True, False], ids=["links", "copies"])
def test_going_on_links_what_the_checkpoint_holds(plain, settings, tmp_path, monkeypatch, links):
    run = tmp_path / "run"
    if not links:
        refuse_links(monkeypatch)
    killed_in(monkeypatch, settings, run, at=9, checkpoints={"resumable": 3})
    before = sha256(snapshots(run)[8][8])
    runs.resume(run, console=quiet())
    held = snapshots(run)
    assert {update: list(files) for update, files in held.items()} == {8: [4, 6, 8], 10: [6, 8, 10], 12: [8, 10, 12]}
    assert held[10][8].samefile(held[12][8]) == links
    assert sha256(held[12][8]) == before
    for update in held:  # 8 too, whose files were loaded and trained on from
        verify(step_directory(run / "checkpoints", update) / "training")
    for place in ("averages/lawa/step00000012", "final"):
        assert_same(weights(run / place), weights(plain / place))


# ---- averages


def test_a_published_average_says_where_it_comes_from(settings, tmp_path):
    run = tmp_path / "run"
    train(settings, run, averaging={"accumulate": "float64"}, evaluation={"every": 6})
    losses = {record["update"]: record["losses"] for record in read(run, "evaluation")}
    for name, updates in {"lawa": [6, 8, 10, 12], "ema": [2, 4, 6, 8, 10, 12]}.items():
        averages = step_directories(run / "averages" / name)
        assert list(averages) == updates
        for update, directory in averages.items():
            verify(directory)
            assert "provenance.json" in listed(directory)
            made = json.loads((directory / "provenance.json").read_text())
            assert made["average"] == name
            assert made["update"] == update
            assert made["kind"] == {"lawa": "window 3, every 2, uniform", "ema": "EMA beta 0.9, every 1"}[name]
            assert made["snapshots"] == {"lawa": [update - 4, update - 2, update], "ema": update}[name]
            assert made["accumulate"] == "float64"
            assert made["validation_loss"] == losses.get(update, {}).get(name)
            assert (made["validation_loss"] is None) == (update % 6 != 0)
            assert {"torch", "transformers", "safetensors"} <= made["versions"].keys()


# ---- failures


@pytest.mark.parametrize("place", ["average", "weights", "training", "snapshot"])
def test_a_disk_that_is_full_stops_training_and_costs_nothing_that_was_whole(
    plain, settings, tmp_path, monkeypatch, place
):
    """At update 8, after a part of it was written. The same run goes on from 6 when there is room again."""
    run = tmp_path / "run"
    original = {name: getattr(module.whole, name) for name in ("write_weights", "save_file")}

    def at(directory, name):
        return ".step00000008.partial" in directory.parts and name in str(directory)

    def write_weights(directory, model, tensors):
        original["write_weights"](directory, model, tensors)
        if at(directory, {"average": "averages/ema", "weights": "checkpoints"}.get(place, "nowhere")):
            raise OSError(28, "No space left on device")

    def save_file(tensors, file):
        if at(file, {"training": "optimizer", "snapshot": "snapshots"}.get(place, "nowhere")):
            file.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        original["save_file"](tensors, file)

    with monkeypatch.context() as patched:
        patched.setattr(module.whole, "write_weights", write_weights)
        patched.setattr(module.whole, "save_file", save_file)
        with pytest.raises(OSError, match="No space left"):
            train(settings, run)
    assert list(step_directories(run / "checkpoints")) == [2, 4, 6]
    assert list(snapshots(run)) == [4, 6]
    assert not list(run.rglob("*.partial"))
    for directory in step_directories(run / "checkpoints").values():
        verify(directory)
    verify(step_directory(run / "checkpoints", 6) / "training")
    runs.resume(run, console=quiet())
    left, right = digests(run), digests(plain)
    assert left == right


def test_the_failure_is_raised_within_an_update_and_the_model_has_its_own_weights(settings, tmp_path, monkeypatch):
    """Also where it is noticed while the model has an average's weights."""
    write, last = module.whole.write_weights, {}
    failing = threading.Event()

    def write_weights(directory, model, tensors):
        if ".step00000006.partial" in directory.parts:
            failing.set()
            raise OSError(28, "No space left on device")
        write(directory, model, tensors)

    def check(self):
        last["update"] = self.setup.averager.step

    seen = watch(monkeypatch)
    save_average = Checkpoints.save_average

    def noted(self, name, position):
        last["model"], last["swapped"] = self.setup.model, name
        save_average(self, name, position)

    monkeypatch.setattr(module.whole, "write_weights", write_weights)
    monkeypatch.setattr(Checkpoints, "save_average", noted)
    monkeypatch.setattr(Checkpoints, "check", check)  # so that the next to ask is the average of update 8
    with pytest.raises(OSError, match="No space left"):
        train(settings, tmp_path / "run", training={"lr": 1e-9, "weight_decay": 0.0, "warmup": 0})
    assert failing.is_set()
    assert (last["update"], last["swapped"]) == (7, "lawa")
    now = last["model"].state_dict()
    for name, tensor in seen[6].items():
        torch.testing.assert_close(now[name], tensor, rtol=0, atol=1e-7)
