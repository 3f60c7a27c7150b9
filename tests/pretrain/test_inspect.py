"""What is said of runs and checkpoints, against the files that the real driver and torch write."""

import io
import json
import os
import pickle
import shutil

import pytest
import torch
import torch.distributed.checkpoint as dcp
from rich.console import Console
from safetensors.torch import load_file, save_file

from lawa import records
from lawa.checkpoints.publish import write_manifest
from lawa.errors import LawaError, UsageError
from lawa.pretrain import run as runs
from lawa.pretrain.config import Config
from lawa.pretrain.directory import alone
from lawa.pretrain.inspect import inspect
from lawa.pretrain.inspect_text import damages, lines
from lawa.settings import build, merge


@pytest.fixture(scope="module")
def trained(settings, tmp_path_factory):
    directory = tmp_path_factory.mktemp("inspected") / "replaced"
    changed = {"averaging": {"mode": "replace", "replace_with": "lawa", "moments": "average"}}
    runs.start(build(Config, merge(settings, changed)), directory, console=Console(file=io.StringIO()))
    return directory


@pytest.fixture
def run(trained, tmp_path):
    """A copy to break; its hard links stay links."""
    shutil.copytree(trained, tmp_path / "run", copy_function=os.link)
    return tmp_path / "run"


def rewrite(file, content):
    file.unlink()  # the copy's name alone
    file.write_bytes(content)


def text(found):
    return [f"{what}: {said}" for what, said in lines(found)]


def test_a_run_says_what_it_is_and_where_it_stands(trained):
    found = inspect(trained)
    described = json.loads((trained / "run.json").read_text())
    assert described.items() <= found.items()
    last = {line["kind"]: line for line in records.read(trained / "metrics.jsonl")}
    assert {kind: found["standing"][kind] for kind in ("train", "evaluation", "replacement")} == {
        kind: last[kind] for kind in ("train", "evaluation", "replacement")
    }
    standing = found["standing"]
    assert (standing["update"], standing["updates"], standing["tokens"]) == (12, 12, 768)
    assert (standing["finished"], standing["held"]) == (True, False)
    said = text(found)
    assert "stands: update 12 of 12, 768 tokens" in said
    assert f"now: it is finished; its model is in {trained / 'final'}" in said
    assert f"model: gpt_neox, {described['model']['parameters']:,} parameters, 67.1 kB in fp32" in said
    assert "averaging: replace with lawa, slide" in said
    assert any(line.startswith("replacement: by lawa of 3 snapshots, loss 4.") for line in said)
    assert damages(found) == []


def test_a_run_says_what_its_windows_hold_and_cost(trained):
    windows = inspect(trained)["windows"]
    parameters = json.loads((trained / "run.json").read_text())["model"]["parameters"]
    assert windows["update"] == 12
    assert windows["holds"] == {"lawa": [8, 10, 12]}
    assert windows["readings"] == {"ema": 12}
    assert windows["snapshot_bytes"] == 3 * 4 * parameters  # the weights and Adam's two moments
    assert (windows["held_snapshots"], windows["snapshots_at_most"]) == (3, 3)
    assert windows["memory_at_most"] == 3 * windows["snapshot_bytes"] + 4 * parameters  # and the EMA
    assert (windows["placement"], windows["split_over"]) == ("device", 1)
    saved = [file for file in (trained / "checkpoints/step00000012/training").rglob("*") if file.is_file()]
    assert windows["saved_bytes"] == sum(file.stat().st_size for file in saved) > windows["held_bytes"]


def test_a_run_lists_its_checkpoints_and_averages(trained):
    found = inspect(trained, verify=True)
    assert [one["update"] for one in found["checkpoints"]] == [2, 4, 6, 8, 10, 12]
    assert [one["training"]["update"] for one in found["checkpoints"] if one["training"]] == [10, 12]
    assert [one["update"] for one in found["saved_averages"]["lawa"]] == [6, 8, 10, 12]
    assert {one["manifest"] for one in [*found["checkpoints"], found["final"]]} == {"digests"}
    assert {one["manifest"] for one in inspect(trained)["checkpoints"]} == {"sizes"}
    stats = [file.stat() for file in trained.rglob("*") if file.is_file()]
    assert found["bytes"] == sum({stat.st_ino: stat.st_size for stat in stats}.values())
    assert found["bytes"] < sum(stat.st_size for stat in stats)  # a snapshot that is linked counts once


def test_a_run_that_is_not_finished_says_how_to_go_on(run):
    shutil.rmtree(run / "final")
    shutil.rmtree(run / "checkpoints" / "step00000012")
    (run / "checkpoints" / ".step00000012.partial").mkdir()
    found = inspect(run)
    assert not found["standing"]["finished"]
    said = text(found)
    assert f"now: go on after update 10 with: lawa train --resume {run}" in said
    assert any(line.startswith(f"unfinished: {run}/checkpoints/.step00000012.partial: ") for line in said)
    assert found["windows"]["holds"] == {"lawa": [6, 8, 10]}
    with alone(run):
        assert inspect(run)["standing"]["held"]
        assert "now: another process trains in it" in text(inspect(run))
    with alone(run):  # inspecting has left the lock alone
        pass


def test_a_sharded_run_with_its_window_on_disk(run):
    described = {**json.loads((run / "run.json").read_text()), "sharding": "fsdp2", "processes": 4}
    rewrite(run / "run.json", json.dumps(described).encode())
    averaging = "averaging: {mode: evaluate, placement: disk, averages: {lawa: {window: 3, every: 2}, e: {ema: 0.9}}}\n"
    rewrite(run / "config.yaml", averaging.encode())
    found = inspect(run)
    assert found["windows"]["memory_at_most"] == found["windows"]["snapshot_bytes"]  # the EMA's alone
    [cost] = [line for line in text(found) if line.startswith("its cost: ")]
    assert "of 67.1 kB read from the checkpoints" in cost
    assert cost.endswith("at most 67.1 kB of memory, split over 4 processes")


def test_a_run_that_has_only_begun(run):
    for name in ("final", "checkpoints", "averages"):
        shutil.rmtree(run / name)
    (run / "metrics.jsonl").unlink()
    found = inspect(run)
    assert found["standing"]["update"] == 0
    assert found["windows"]["holds"] == {}
    assert f"now: it has no checkpoint yet; remove {run} and start anew" in text(found)


def test_what_a_resume_changed_is_shown(run):
    described = json.loads((run / "run.json").read_text())
    described["resumed"] = [{"update": 4, "changed": {"training.updates": {"was": 8, "is": 12}}}]
    rewrite(run / "run.json", json.dumps(described).encode())
    assert "resumed: after update 4; training.updates: 8 → 12" in text(inspect(run))


def test_a_damaged_checkpoint_is_named_and_the_others_are_shown(run):
    step = run / "checkpoints" / "step00000006"
    weights = (step / "model.safetensors").read_bytes()
    rewrite(step / "model.safetensors", weights[:-1])
    found = inspect(run)
    assert [sentence.partition(" has ")[0] for sentence in damages(found)] == [str(step / "model.safetensors")]
    assert [one["manifest"] for one in found["checkpoints"]] == ["sizes", "sizes", None, "sizes", "sizes", "sizes"]

    rewrite(step / "model.safetensors", weights[:-1] + bytes([weights[-1] ^ 1]))
    assert damages(inspect(run)) == []
    [sentence] = damages(inspect(run, verify=True))
    assert sentence == f"{step / 'model.safetensors'} differs from what was written (SHA-256); it is damaged"
    with pytest.raises(LawaError, match="differs from what was written"):
        inspect(step, verify=True)


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("manifest.json", b"{", r"step00000012/manifest\.json is no manifest \(JSONDecodeError"),
        ("manifest.json", b"[]", r"step00000012/manifest\.json is no manifest \(TypeError"),
        ("training/manifest.json", b'{"files": 3}', r"training/manifest\.json is no manifest"),
        ("training/state.json", b"{}", r"state\.json has 2 bytes"),
    ],
)
def test_damaged_plain_files_get_a_sentence(run, file, content, sentence):
    step = run / "checkpoints" / "step00000012"
    rewrite(step / file, content)
    with pytest.raises(LawaError, match=sentence):
        inspect(step)
    found = inspect(run)
    assert len(damages(found)) == 1
    assert found["windows"]["update"] == 10  # of the latest that can be read


def test_a_training_state_that_is_none(run):
    training = run / "checkpoints" / "step00000012" / "training"
    rewrite(training / "state.json", b'{"averager": "{"}')
    (training / "manifest.json").unlink()
    write_manifest(training)
    with pytest.raises(LawaError, match=r"state\.json is no training state"):
        inspect(run / "checkpoints" / "step00000012")


def test_a_checkpoint_and_an_average(trained):
    found = inspect(trained / "checkpoints" / "step00000012")
    weights = load_file(trained / "final" / "model.safetensors")
    assert (found["format"], found["model"], found["tensors"]) == ("hf", "gpt_neox", len(weights))
    assert found["parameters"] == sum(tensor.numel() for tensor in weights.values())
    assert found["dtypes"] == {"float32": found["parameters"]}
    assert found["training"]["windows"] == {"lawa": [8, 10, 12]}
    assert found["export"] is None
    assert "pending: the replacement of update 12, carried out first" in text(found)
    average = inspect(trained / "averages" / "lawa" / "step00000012", verify=True)
    assert average["average"]["snapshots"] == [8, 10, 12]
    said = text(average)
    assert "average: lawa: window 3, every 2, uniform, at update 12" in said
    assert "made of: the snapshots of updates 8, 10, 12, summed in float32" in said
    assert "manifest: every file has its digest" in said
    ema = inspect(trained / "averages" / "ema" / "step00000012")
    assert "made of: 12 readings, summed in float32" in text(ema)


def test_shards_and_a_bf16_export(tmp_path):
    parts = {"model-1.safetensors": {"a": torch.zeros(3, 4, dtype=torch.bfloat16)},
             "model-2.safetensors": {"b": torch.zeros(5), "n": torch.zeros(2, dtype=torch.int64)}}  # fmt: skip
    for name, tensors in parts.items():
        save_file(tensors, tmp_path / name)
    index = {"weight_map": {tensor: name for name, tensors in parts.items() for tensor in tensors}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    found = inspect(tmp_path)
    assert found["dtypes"] == {"bfloat16": 12, "float32": 5, "int64": 2}
    assert found["manifest"] == "none"
    assert "its weights are bfloat16, an export: averages made from it are not the loop's" in found["export"]
    assert f"note: {found['export']}" in text(found)
    (tmp_path / "model-2.safetensors").write_bytes(b"short")
    with pytest.raises(LawaError, match=r"model-2\.safetensors .*; it is damaged"):
        inspect(tmp_path)
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(LawaError, match=r"lacks 'model-2\.safetensors', which model\.safetensors\.index\.json lists"):
        inspect(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(LawaError, match=r"index\.json is no index of shards"):
        inspect(tmp_path)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_dcp_checkpoint_is_read_without_torch(tmp_path):
    tensors = {"a.weight": torch.zeros(3, 4), "half": torch.zeros(5, dtype=torch.bfloat16), "one": torch.tensor(1)}
    dcp.save({"model": tensors, "count": 3}, checkpoint_id=tmp_path / "weights", no_dist=True)
    found = inspect(tmp_path)
    assert (found["format"], found["tensors"], found["parameters"]) == ("dcp", 3, 18)
    assert found["dtypes"] == {"float32": 12, "bfloat16": 5, "int64": 1}
    metadata = tmp_path / "weights" / ".metadata"
    metadata.write_bytes(metadata.read_bytes()[:-40])
    with pytest.raises(LawaError, match=r"\.metadata is no metadata of torch DCP .*; it is damaged"):
        inspect(tmp_path)


def test_a_pickle_is_not_believed(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "done"),)

    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / ".metadata").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(LawaError, match="which torch DCP does not write"):
        inspect(tmp_path)
    assert not (tmp_path / "done").exists()


def test_what_is_neither_gets_one_sentence(tmp_path, run):
    for name in ("empty", "begun", ".step00000004.partial"):
        (tmp_path / name).mkdir()
    (tmp_path / "begun" / ".lock").touch()
    (tmp_path / "file").touch()
    for name, kind, sentence in [
        ("nowhere", UsageError, "nowhere does not exist; give a run of lawa train, a checkpoint, or ORG/NAME"),
        ("file", LawaError, "file is neither safetensors nor of torch.save"),
        ("empty", LawaError, r"empty holds no checkpoint that is known here .*; it holds nothing"),
        ("begun", LawaError, "begun is a run that has not begun"),
        (".step00000004.partial", LawaError, "was never finished"),
    ]:
        with pytest.raises(kind, match=sentence):
            inspect(tmp_path / name)
    rewrite(run / "config.yaml", b"averaging: {modes: none}\n")
    with pytest.raises(LawaError, match=r"config\.yaml: unknown setting averaging\.modes"):
        inspect(run)
    for content, sentence in [(b"{", r"run\.json is not JSON"), (b"3", "holds no object"), (b"{}", "lacks name, ")]:
        rewrite(run / "run.json", content)
        with pytest.raises(LawaError, match=sentence):
            inspect(run)


def test_an_index_that_names_files_elsewhere_is_refused(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "secret.safetensors")
    (tmp_path / "model").mkdir()
    index = {"weight_map": {"a": "../secret.safetensors"}}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(LawaError, match=r"lists '\.\./secret\.safetensors', which is not in its directory"):
        inspect(tmp_path / "model")
