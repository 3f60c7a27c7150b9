"""What TensorBoard, wandb and trackio are told, read back from what they keep."""

import json
import math
import sqlite3
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
from accelerate import Accelerator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lawa.errors import LawaError, UsageError
from lawa.pretrain.sections.tracking import TrackingConfig
from lawa.pretrain.trackers import Trackers, flat, named
from lawa.records import Records
from lawa.settings import build

RECORDS = {
    2: [("train", {"tokens": 128, "loss": 5.5, "lr": 0.01, "grad_norm": 1.5, "loss_scale": 65536.0})],
    4: [
        ("train", {"tokens": 256, "loss": 5.0, "lr": 0.009, "grad_norm": math.inf}),
        (
            "evaluation",
            {"tokens": 256, "losses": {"plain": 5.25, "lawa": 5.125, "ema": 5.75}, "snapshots": {"lawa": 2, "ema": 4}},
        ),
        ("replacement", {"tokens": 256, "name": "lawa", "snapshots": 2, "applied": True, "loss": 5.125}),
    ],
    6: [
        ("train", {"tokens": 384, "loss": 4.5, "lr": 0.008, "grad_norm": 1.0}),
        ("replacement", {"tokens": 384, "name": "lawa", "snapshots": 2, "applied": False, "loss": None}),
        ("end", {"tokens": 384, "seconds": {"training": 1.5, "averaging": 0.25}}),
    ],
}


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


def configuration(*trackers, **settings):
    values = {"training": {"lr": 0.01, "decay": None}, "data": {"train": ["a", "b"]}, "seed": 3}
    return SimpleNamespace(tracking=TrackingConfig(trackers=list(trackers), **settings), to_dict=lambda: values)


def tell(trackers, run, updates, *, since=0):
    """As the loop does: metrics.jsonl and the trackers get the same; `since` is the place in the first update."""
    for update in updates:
        for kind, fields in RECORDS[update][since:]:
            Records(run / "metrics.jsonl").append(kind, update, **fields)
            trackers.log(kind, update, fields)
        since = 0


def killed_then_resumed(accelerator, config, run, warnings):
    """Logs updates 2, 4 and 6, is gone, and goes on from the checkpoint of update 4, before its replacement."""
    first = Trackers.start(accelerator, config, run, None, warn=warnings.append)
    tell(first, run, (2, 4))
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    tell(first, run, (6,))
    first.finish()
    (run / "metrics.jsonl").write_text("".join(lines[:-1]))
    second = Trackers.start(accelerator, config, run, 4, warn=warnings.append)
    tell(second, run, (4, 6), since=2)
    second.finish()


def test_records_get_clear_names():
    told = {update: [dict(named(kind, fields)) for kind, fields in lines] for update, lines in RECORDS.items()}
    assert told == {
        2: [{"train/tokens": 128, "train/loss": 5.5, "train/lr": 0.01, "train/grad_norm": 1.5,
             "train/loss_scale": 65536.0}],
        4: [{"train/tokens": 256, "train/loss": 5.0, "train/lr": 0.009, "train/grad_norm": math.inf},
            {"validation/plain": 5.25, "validation/lawa": 5.125, "validation/ema": 5.75,
             "validation/lawa_snapshots": 2, "validation/ema_snapshots": 4},
            {"replacement/tokens": 256, "replacement/snapshots": 2, "replacement/applied": 1,
             "replacement/loss": 5.125}],
        6: [{"train/tokens": 384, "train/loss": 4.5, "train/lr": 0.008, "train/grad_norm": 1.0},
            {"replacement/tokens": 384, "replacement/snapshots": 2, "replacement/applied": 0},
            {"end/tokens": 384, "end/seconds/training": 1.5, "end/seconds/averaging": 0.25}],
    }  # fmt: skip


def test_hyperparameters_are_the_flat_configuration():
    assert dict(flat(configuration().to_dict())) == {
        "training.lr": 0.01, "training.decay": "None", "data.train": "['a', 'b']", "seed": 3,
    }  # fmt: skip


def test_tensorboard_shows_every_point_once_after_a_resume(accelerator, tmp_path):
    warnings = []
    killed_then_resumed(accelerator, configuration("tensorboard", name="demo"), tmp_path, warnings)
    assert warnings == []
    events = EventAccumulator(str(tmp_path / "tracking" / "tensorboard" / "demo"))
    events.Reload()
    found = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    expected = {}
    for update, lines in RECORDS.items():
        for kind, fields in lines:
            for name, value in named(kind, fields):
                expected.setdefault(name, []).append((update, pytest.approx(value)))
    assert found == expected
    assert (tmp_path / "tracking").is_dir()
    assert [entry.name for entry in (tmp_path / "tracking" / "tensorboard").iterdir()] == ["demo"]
    assert "_hparams_/session_start_info" in events.summary_metadata


def test_the_run_is_called_by_its_directory(accelerator, tmp_path):
    run = tmp_path / "a-run"
    run.mkdir()
    Trackers.start(accelerator, configuration("tensorboard"), run, None, warn=pytest.fail).finish()
    assert (run / "tracking" / "tensorboard" / "a-run").is_dir()


def test_without_trackers_and_on_other_ranks_nothing_is_written(accelerator, tmp_path):
    other = SimpleNamespace(is_main_process=False)
    for rank, config in ((accelerator, configuration()), (other, configuration("tensorboard"))):
        trackers = Trackers.start(rank, config, tmp_path, None, warn=pytest.fail)
        trackers.log("train", 2, {"loss": 1.0})
        trackers.finish()
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_installed_is_named_with_its_extra(accelerator, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(LawaError, match=r"wandb is not installed; .*latest-weight-averaging\[trackers\]"):
        Trackers.start(accelerator, configuration("wandb"), tmp_path, None, warn=pytest.fail)


def test_a_tracker_that_fails_is_left_out_and_the_others_go_on(accelerator, tmp_path):
    warnings, told = [], []

    def fails(values, step):
        raise OSError(28, "No space left on device")

    broken = SimpleNamespace(log=fails, finish=pytest.fail)
    good = SimpleNamespace(log=lambda values, step: told.append((step, values)), finish=told.clear)
    trackers = Trackers({"wandb": broken, "tensorboard": good}, warnings.append)
    trackers.log("train", 2, {"loss": 5.5})
    trackers.log("train", 4, {"loss": 5.0})
    assert told == [(2, {"train/loss": 5.5}), (4, {"train/loss": 5.0})]
    assert warnings == ["wandb failed and is left out from now on ([Errno 28] No space left on device)"]
    trackers.finish()
    assert told == []


def test_a_tracker_that_does_not_start_stops_the_run_before_it_begins(accelerator, tmp_path):
    (tmp_path / "tracking").mkdir()
    (tmp_path / "tracking" / "tensorboard").touch()
    with pytest.raises(LawaError, match=r"tracking: tensorboard would not start \(.*\); mend that, or leave it out"):
        Trackers.start(accelerator, configuration("tensorboard"), tmp_path, None, warn=pytest.fail)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"trackers": ["tensorbord"]}, r"tracking\.trackers='tensorbord' must be one of tensorboard, wandb, trackio"),
        ({"trackers": ["wandb", "wandb"]}, r"tracking\.trackers names wandb twice"),
        ({"name": "a/b"}, r"tracking\.name='a/b' must be a name, without a slash"),
        ({"project": ""}, r"tracking\.project='' must be a name"),
    ],
)
def test_impossible_settings(values, sentence):
    with pytest.raises(UsageError, match=sentence):
        build(TrackingConfig, values, "tracking")


def test_one_tracker_may_be_given_as_text():
    assert build(TrackingConfig, {"trackers": "wandb"}, "tracking").trackers == ["wandb"]


def test_wandb_goes_on_with_the_same_run(accelerator, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    killed_then_resumed(accelerator, configuration("wandb", name="demo"), tmp_path, [])
    known = json.loads((tmp_path / "tracking" / "wandb.json").read_text())["id"]
    files = list((tmp_path / "tracking" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert {file.name for file in files} == {f"run-{known}.wandb"}
    assert any(b"validation/lawa" in file.read_bytes() for file in files)


def test_trackio_shows_every_point_once_after_a_resume(accelerator, tmp_path, monkeypatch, capsys):
    if find_spec("trackio") is None:
        pytest.skip("trackio is not installed")  # importing it here would settle where it writes
    monkeypatch.setenv("TRACKIO_DIR", "")  # put back what was there, whatever the driver makes of it
    monkeypatch.delenv("TRACKIO_DIR")
    killed_then_resumed(accelerator, configuration("trackio", name="demo"), tmp_path, [])
    assert capsys.readouterr().out == ""
    with sqlite3.connect(tmp_path / "tracking" / "trackio" / "lawa.db") as database:
        rows = database.execute("SELECT run_name, step, metrics FROM metrics").fetchall()
    steps = [(step, name) for _, step, metrics in rows for name in json.loads(metrics)]
    assert {run for run, _, _ in rows} == {"demo"}
    assert len(steps) == len(set(steps))
    assert {(update, name) for update, lines in RECORDS.items() for one in lines for name, _ in named(*one)} == set(
        steps
    )
