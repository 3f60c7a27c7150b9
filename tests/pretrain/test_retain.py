"""What is kept of a run, and that a window on disk never lacks what it needs."""

import pytest

from lawa.checkpoints.find import step_directories, step_directory
from lawa.errors import LawaError, UsageError
from lawa.pretrain import run as runs
from lawa.pretrain.checkpoint import checkpoints as module
from lawa.pretrain.loop import Loop
from pretrain.driving import Killed, assert_same, killed_in, quiet, train, weights
from pretrain.test_checkpoint_files import digests, snapshots


@pytest.mark.parametrize("resumable", [1, 3])
@pytest.mark.parametrize("saved", ["none", "last", "all"])
def test_what_the_settings_keep(settings, tmp_path, resumable, saved):
    run = tmp_path / "run"
    train(settings, run, checkpoints={"resumable": resumable, "save_averages": saved})
    assert list(snapshots(run)) == [2, 4, 6, 8, 10, 12][-resumable:]
    assert list(step_directories(run / "checkpoints")) == [2, 4, 6, 8, 10, 12]
    assert {name: list(step_directories(run / "averages" / name)) for name in ("lawa", "ema")} == {
        "none": {"lawa": [], "ema": []},
        "last": {"lawa": [12], "ema": [12]},
        "all": {"lawa": [6, 8, 10, 12], "ema": [2, 4, 6, 8, 10, 12]},
    }[saved]
    assert not [path for path in run.rglob(".*") if path.name != ".lock"]


WIDE = {"averages": {"lawa": {"window": 3, "every": 4}, "ema": None}}
ON_DISK = {**WIDE, "placement": "disk"}


@pytest.mark.parametrize("mode", [{}, {"mode": "replace", "min_window": None}], ids=["evaluate", "replace"])
def test_on_disk_what_windows_need_is_kept_and_no_more(settings, tmp_path, monkeypatch, mode):
    """Of keep=1 only what the snapshots of the window are; the average's bits are those of snapshots in memory."""
    mode = {key: value for key, value in mode.items() if value is not None}
    run, memory = tmp_path / "run", tmp_path / "memory"
    keep = {"keep": 1, "resumable": 1}
    seen = []
    let_go = module.retain

    def retain(*arguments):
        let_go(*arguments)
        seen.append(list(step_directories(run / "checkpoints")))

    with monkeypatch.context() as patched:
        patched.setattr(module, "retain", retain)
        train(settings, run, averaging={**ON_DISK, **mode}, checkpoints=keep)
    assert seen == [[2], [4], [4, 6], [4, 8], [4, 8, 10], [4, 8, 12]]
    assert (snapshots(run)) == {12: {}}, "and no snapshot is stored again"
    train(settings, memory, averaging={**WIDE, **mode}, checkpoints=keep)
    assert list(step_directories(memory / "checkpoints")) == [12]
    for place in ("averages/lawa/step00000012", "final"):
        assert_same(weights(run / place), weights(memory / place))
    killed_in(
        monkeypatch, settings, tmp_path / "parts", at=11, averaging={**ON_DISK, **mode}, checkpoints=keep
    )  # its window holds 4 and 8
    runs.resume(tmp_path / "parts", console=quiet())
    for place in ("averages/lawa/step00000012", "final"):
        assert_same(weights(tmp_path / "parts" / place), weights(memory / place))


def test_a_kill_inside_letting_go_is_made_up_for_on_resume(settings, tmp_path, monkeypatch):
    """The snapshots that a window needs are there after either half of it."""
    run, sections = tmp_path / "run", {"averaging": ON_DISK, "checkpoints": {"keep": 1, "resumable": 1}}

    def halfway(run, config):
        if max(step_directories(run / "checkpoints")) == 10:
            raise Killed
        module_retain(run, config)

    module_retain = module.retain
    with monkeypatch.context() as patched:
        patched.setattr(module, "retain", halfway)
        with pytest.raises(Killed):
            train(settings, run, **sections)
    assert list(step_directories(run / "checkpoints")) == [4, 8, 10]
    assert list(snapshots(run)) == [8, 10]
    with monkeypatch.context() as patched:
        patched.setattr(Loop, "train", lambda self: {})
        runs.resume(run, console=quiet())
    assert list(step_directories(run / "checkpoints")) == [4, 8, 10]
    assert list(snapshots(run)) == [10]
    runs.resume(run, console=quiet())
    assert list(step_directories(run / "checkpoints")) == [4, 8, 12]
    train(settings, tmp_path / "whole", **sections)
    assert_same(weights(run / "averages/lawa/step00000012"), weights(tmp_path / "whole/averages/lawa/step00000012"))


def test_a_checkpoint_of_a_window_that_is_gone_is_named_on_resume(settings, tmp_path, monkeypatch):
    run = tmp_path / "run"
    killed_in(monkeypatch, settings, run, at=11, averaging=ON_DISK)
    (step_directory(run / "checkpoints", 4) / "manifest.json").unlink()
    before = digests(run)
    with pytest.raises(LawaError, match="holds the snapshot of update 4, but the run has no whole checkpoint of it"):
        runs.resume(run, console=quiet())
    assert digests(run) == before


@pytest.mark.parametrize("damage", ["altered", "cut", "missing"])
def test_a_damaged_checkpoint_of_a_window_is_refused_by_name(settings, tmp_path, monkeypatch, damage):
    """It is none that training goes on from, but its weights go into the next average."""
    run = tmp_path / "run"
    killed_in(monkeypatch, settings, run, at=11, averaging=ON_DISK)
    file = step_directory(run / "checkpoints", 4) / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content if damage == "altered" else content[:-1])
    if damage == "missing":
        file.unlink()
    with pytest.raises(
        LawaError, match=r"step00000004/model\.safetensors .*, and a window needs it; put the file back"
    ):
        runs.resume(run, console=quiet())


def test_weights_that_a_checkpoint_lacks_are_no_average(settings, tmp_path, monkeypatch):
    run, written = tmp_path / "run", module.whole.write_weights

    def write(directory, model, weights):
        lacking = "step00000004" in directory.name
        written(directory, model, {n: w for n, w in weights.items() if not (lacking and "bias" in n)})

    monkeypatch.setattr(module.whole, "write_weights", write)
    with pytest.raises(LawaError, match=r"step00000004 lacks the weights of 'gpt_neox\..*bias', which a window needs"):
        train(settings, run, averaging=ON_DISK)


@pytest.mark.parametrize("sharding", ["none", "fsdp2"])
def test_snapshots_that_are_checkpoints_stay_on_disk(settings, tmp_path, monkeypatch, sharding):
    run = tmp_path / "run"
    killed_in(monkeypatch, settings, run, at=11, averaging=ON_DISK, training={"sharding": sharding})
    with pytest.raises(UsageError, match=r"was saved with averaging\.placement=disk and holds no snapshots; leave it"):
        runs.resume(run, overrides={"averaging": {"placement": "device"}}, force=True, console=quiet())
