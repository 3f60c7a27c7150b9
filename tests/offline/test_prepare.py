"""What was asked for, before anything is written: settings, warnings, notes, and what a dry run tells."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch import Tensor

import lawa
from lawa.errors import LawaError, UsageError
from lawa.offline import duplicates
from lawa.offline.prepare import Asked
from lawa.offline.preview import preview_lines
from offline.jobs import stop_after

STEPS = (100, 200, 300)


def state(step: int) -> dict[str, Tensor]:
    torch.manual_seed(step)
    return {"w": torch.randn(5, 3), "half": torch.randn(7).bfloat16(), "count": torch.tensor(step)}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step in STEPS:
        (tmp_path / "run" / f"checkpoint-{step}").mkdir(parents=True)
        save_file(state(step), tmp_path / "run" / f"checkpoint-{step}" / "model.safetensors")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"threads": 0}, "threads=0 must be a whole number, and at least 1"),
        ({"threads": "4"}, "threads='4' must be"),
        ({"window": []}, r"window=\[\] must be whole numbers"),
        ({"window": "5"}, "window='5' must be whole numbers"),
        ({"window": 2.0}, r"window=\(2\.0,\) must be whole numbers"),
        ({"window": 2, "spacing": 1.5}, r"spacing=1\.5 must be whole numbers"),
        ({"steps": [100, "200"]}, r"steps=\[100, '200'\] must be updates"),
        ({"steps": []}, r"steps=\[\] holds no step"),
        ({"last": "2"}, "last='2' must be a whole number"),
        ({"ignore": "weight"}, "ignore='weight' is the name of no tensor; `lawa inspect --tensors` lists them"),
    ],
)
def test_settings_that_are_none(run: Path, tmp_path: Path, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        lawa.average(run, **{"output": tmp_path / "out", **settings})
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]


def test_one_name_is_one_pattern(run: Path, tmp_path: Path) -> None:
    output = lawa.average(run, output=tmp_path / "out", ignore="w", window=(2,))
    assert load_file(output / "model.safetensors").keys() == {"half", "count"}
    output = lawa.average(run, output=tmp_path / "latest", latest="w")
    assert torch.equal(load_file(output / "model.safetensors")["w"], state(300)["w"])


def test_inputs_out_of_the_order_of_their_steps_are_a_warning(run: Path, tmp_path: Path) -> None:
    named = [run / f"checkpoint-{step}" for step in (100, 300, 200)]
    with pytest.warns(UserWarning, match="step 200 is named after step 300: what is named one by one keeps its order"):
        told = lawa.average(named, output=tmp_path / "out", dry_run=True)
    assert any("step 200 is named after step 300" in note for note in told["notes"])
    (tmp_path / "other").mkdir()
    save_file(state(1), tmp_path / "other" / "step1.safetensors")
    for inputs in ([run / "checkpoint-300", tmp_path / "other" / "step1.safetensors"], named[:2]):
        lawa.average(inputs, output=tmp_path / "out", dry_run=True)  # of two folders nothing can be told
    lawa.average(named, output=tmp_path / "out", steps="100:300", dry_run=True)  # by step


def test_an_output_behind_a_link_goes_on(run: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "out")
    assert Asked(inputs=[run], output=tmp_path / "link").output == tmp_path / "disk" / "out"
    stop = stop_after(5)
    with pytest.raises(KeyboardInterrupt):
        lawa.average(run, output=tmp_path / "link", threads=1, progress=lambda what, done, total: stop(done))
    assert [entry.name for entry in (tmp_path / "disk").iterdir()] == [".out.averaging"]
    assert lawa.average(run, output=tmp_path / "link") == tmp_path / "disk" / "out"
    with pytest.raises(UsageError, match="disk/out exists already"):
        lawa.average(run, output=tmp_path / "link")
    assert {entry.name for entry in tmp_path.iterdir()} == {"run", "disk", "link"}


def test_duplicates_that_are_allowed_are_not_looked_for(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(catalogs: Any) -> list[list[int]]:
        raise AssertionError("compared")

    monkeypatch.setattr(duplicates, "find", find)
    assert lawa.average(run, output=tmp_path / "out", allow_duplicates=True).is_dir()
    with pytest.raises(AssertionError, match="compared"):
        lawa.average(run, output=tmp_path / "other")


def test_a_trainers_export_beside_deepspeeds_masters(run: Path, tmp_path: Path) -> None:
    for step in STEPS:
        checkpoint = run / f"checkpoint-{step}"
        (checkpoint / f"global_step{step}").mkdir()
        (checkpoint / "latest").write_text(f"global_step{step}\n")
    named = [run / f"checkpoint-{step}" for step in (200, 100)]
    told = lawa.average(named, last=2, output=tmp_path / "out", dry_run=True)
    assert [(one["step"], one["format"]) for one in told["inputs"]] == [(100, "hf"), (200, "hf")]
    assert told["notes"] == [
        f"{run}/checkpoint-100 is averaged as it was exported; its fp32 masters are DeepSpeed's in "
        f"{run}/checkpoint-100/global_step100"
    ]
    mean = (state(100)["w"] + state(200)["w"]) * 0.5
    assert torch.equal(load_file(lawa.average(named, last=2, output=tmp_path / "out") / "model.safetensors")["w"], mean)


# ---- a dry run


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    for step in STEPS:
        moments = {"state": {name: tensor.float() for name, tensor in state(step).items()}}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp.save(
                {"app": {"model": state(step), "optim": moments}},
                checkpoint_id=tmp_path / f"dcp/step{step}",
                no_dist=True,
            )
    return tmp_path / "dcp"


def test_a_dry_run_of_dcp_tells_all_from_its_metadata(sharded: Path, tmp_path: Path) -> None:
    told = lawa.average(sharded, output=tmp_path / "out", last=2, dry_run=True)
    nbytes = 15 * 4 + 7 * 2 + 8
    assert [(one["format"], one["read"], one["tensors"], one["bytes"], one["scratch"]) for one in told["inputs"]] == [
        ("dcp", "tensor by tensor", 3, nbytes, nbytes)
    ] * 2
    assert told["inputs"][0]["dtypes"] == {"float32": 15, "bfloat16": 7, "int64": 1}
    assert (told["bytes_scratch"], told["bytes_read"]) == (2 * nbytes, 2 * nbytes - 8)
    assert (told["tensors"]["averaged"], told["tensors"]["latest"]) == (2, ["count"])
    assert told["notes"] == ["whether inputs have the same content is seen when they are averaged"]
    assert ("scratch", f"up to {2 * nbytes} B beside the output, until it is done") in preview_lines(told)
    assert [entry.name for entry in tmp_path.iterdir()] == ["dcp"]
    written = lawa.average(sharded, output=tmp_path / "out", last=2)
    assert told["bytes_written"] == (written / "model.safetensors").stat().st_size


def test_a_dry_run_sees_what_does_not_belong_together(sharded: Path, run: Path, tmp_path: Path) -> None:
    save_file({"w": torch.ones(5, 3)}, run / "checkpoint-200" / "model.safetensors")
    with pytest.raises(LawaError, match=r"checkpoint-200 lacks the tensor 'half' of .*step300"):
        lawa.average([run / "checkpoint-200", sharded / "step300"], output=tmp_path / "out", dry_run=True)


def test_the_room_that_scratch_files_need(run: Path, tmp_path: Path) -> None:
    told = lawa.average(run, output=tmp_path / "out", dry_run=True)
    assert (told["bytes_scratch"], [one["scratch"] for one in told["inputs"]]) == (0, [0, 0, 0])
    assert not any(what == "scratch" for what, _ in preview_lines(told))
    old = run / "ckpt_400.pt"
    torch.save(state(400), old, _use_new_zipfile_serialization=False)
    told = lawa.average(run, output=tmp_path / "out", dry_run=True)
    assert told["bytes_scratch"] == told["inputs"][-1]["scratch"] == old.stat().st_size
