"""`lawa.average`: from what was asked for to published directories, against the twins and the real libraries."""

from __future__ import annotations

import fcntl
import json
import os
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import lawa
import twins
from checkpoints.formats import made
from lawa.averaging.coefficients import coefficients
from lawa.checkpoints.publish import verify
from lawa.errors import LawaError, UsageError
from lawa.offline import average as door
from lawa.offline.average import bytes_of
from lawa.offline.to_dcp import to_dcp
from lawa.records import read_json

STEPS = (100, 200, 300, 400)


def state(step: int) -> dict[str, Tensor]:
    torch.manual_seed(step)
    return {"w": torch.randn(5, 3), "half": torch.randn(7).bfloat16(), "count": torch.tensor(step)}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A trainer's folder of checkpoints, with a configuration and a tokenizer in each."""
    for step in STEPS:
        directory = tmp_path / "run" / f"checkpoint-{step}"
        directory.mkdir(parents=True)
        save_file(state(step), directory / "model.safetensors")
        config = {"model_type": "tiny", "torch_dtype": "float32", "step": step, "text_config": {"dtype": "float32"}}
        (directory / "config.json").write_text(json.dumps(config))
        for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json", "preprocessor_config.json"):
            (directory / name).write_text(f"{name} {step}")
        for name in ("optimizer.pt", "trainer_state.json", "README.md"):
            (directory / name).write_text("no weights")
    return tmp_path / "run"


def twin(steps: tuple[int, ...], name: str, family: Any = "uniform") -> Tensor:
    weights = None if family == "uniform" else coefficients(family, len(steps))
    own = state(steps[-1])[name]
    mean = twins.mean([twins.array(state(step)[name]) for step in steps], weights)
    return torch.from_numpy(twins.rounded(mean, own.dtype)).to(own.dtype)


def check(output: Path, steps: tuple[int, ...], family: Any = "uniform") -> None:
    found = load_file(output / "model.safetensors")
    assert found.keys() == {"w", "half", "count"}
    for name in ("w", "half"):
        assert twins.same_bits(found[name], twin(steps, name, family)), name
    assert found["count"] == steps[-1]
    verify(output)


def test_one_average_of_a_run(run: Path, tmp_path: Path) -> None:
    output = lawa.average(run, output=tmp_path / "new" / "out", last=3, verify=True)
    assert output == tmp_path / "new" / "out"
    check(output, (200, 300, 400))
    told = read_json(output / "provenance.json")
    assert [one["step"] for one in told["inputs"]] == [200, 300, 400]
    assert told["verified"]["tensors"] == 3
    assert (output / "README.md").read_text().startswith("---\n")
    assert {entry.name for entry in (tmp_path / "new").iterdir()} == {"out"}


def test_the_latests_configuration_and_tokenizer_are_carried(run: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="step 200 is named after step 400"):
        output = lawa.average([run / "checkpoint-400", run / "checkpoint-200"], output=tmp_path / "out")
    check(output, (400, 200))
    names = {"config.json", "tokenizer.json", "chat_template.jinja", "generation_config.json"}
    names |= {"preprocessor_config.json", "model.safetensors", "manifest.json", "provenance.json", "README.md"}
    assert {entry.name for entry in output.iterdir()} == names
    assert (output / "tokenizer.json").read_text() == "tokenizer.json 200"
    assert read_json(output / "config.json") == read_json(run / "checkpoint-200" / "config.json")


def test_the_configuration_tells_another_dtype(run: Path, tmp_path: Path) -> None:
    output = lawa.average(run, output=tmp_path / "out", out_dtype="bfloat16")
    config = read_json(output / "config.json")
    assert (config["torch_dtype"], config["text_config"]["dtype"]) == ("bfloat16", "bfloat16")
    found = load_file(output / "model.safetensors")
    assert (found["w"].dtype, found["count"].dtype) == (torch.bfloat16, torch.int64)


def test_every_window_in_one_pass_as_it_is_done(run: Path, tmp_path: Path) -> None:
    families = ["uniform", {"ema": 0.5}]
    done = lawa.average(run, output=tmp_path / "out", rolling=True, window=[2, 3], coefficients=families)
    first = next(done)
    assert first == tmp_path / "out" / "window2-uniform" / "step00000200"
    check(first, (100, 200))
    paths = [first, *done]
    assert len(paths) == 2 * (3 + 2)
    for k in (2, 3):
        for family, name in (("uniform", "uniform"), ({"ema": 0.5}, "ema0.5")):
            for end in range(k, 5):
                steps = STEPS[end - k : end]
                output = tmp_path / "out" / f"window{k}-{name}" / f"step{steps[-1]:08}"
                assert output in paths
                check(output, steps, family)
                assert read_json(output / "config.json")["step"] == steps[-1]


def test_windows_are_spaced_and_the_latest_alone_is_made(run: Path, tmp_path: Path) -> None:
    check(lawa.average(run, output=tmp_path / "out", window=2, spacing=2), (200, 400))
    several = lawa.average(run, output=tmp_path / "several", window=[1, 4])
    assert list(several) == [tmp_path / "several" / "window1", tmp_path / "several" / "window4"]
    check(tmp_path / "several" / "window4", STEPS)


def test_formats_are_mixed(tmp_path: Path) -> None:
    """GPT-NeoX as transformers writes it, as torch.save does, and from DCP under the names it has in memory."""
    models = [made.neox(seed=seed) for seed in (1, 2, 3)]
    models[0].save_pretrained(tmp_path / "a")
    torch.save({"model": models[1].state_dict()}, tmp_path / "b.pt")
    models[2].config.save_pretrained(tmp_path / "c")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"model": models[2].state_dict()}, checkpoint_id=tmp_path / "c" / "weights", no_dist=True)
    with pytest.raises(LawaError, match=r"embed_out\.weight"):  # nothing says that b.pt is GPT-NeoX
        lawa.average([tmp_path / "a", tmp_path / "b.pt", tmp_path / "c"], output=tmp_path / "out")
    (tmp_path / "b").mkdir()
    (tmp_path / "b.pt").rename(tmp_path / "b" / "b.pt")
    models[1].config.save_pretrained(tmp_path / "b")
    inputs = [tmp_path / "a", tmp_path / "b" / "b.pt", tmp_path / "c"]
    output = lawa.average(inputs, output=tmp_path / "out", verify=True)
    loaded = AutoModelForCausalLM.from_pretrained(output)
    for name, tensor in loaded.state_dict().items():
        arrays = [twins.array(model.state_dict()[name]) for model in models]
        assert twins.same_bits(tensor, twins.uniform(arrays)), name
    assert {entry.name for entry in tmp_path.iterdir()} == {"a", "b", "c", "out"}  # no scratch files are left


def test_dcp_is_written_and_read_back(run: Path, tmp_path: Path) -> None:
    output = lawa.average(run, output=tmp_path / "dcp", last=2, format="dcp", shard_size=50)
    assert {entry.name for entry in output.iterdir() if "safetensors" in entry.name} == set()
    verify(output)
    tensors = {name: torch.empty_like(tensor) for name, tensor in state(400).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load({"model": tensors}, checkpoint_id=output / "weights", no_dist=True)
    assert twins.same_bits(tensors["w"], twin((300, 400), "w"))
    check(lawa.average(output, output=tmp_path / "hf"), (300, 400))


def test_a_conversion_that_was_killed_begins_again_and_one_that_is_whole_stays(tmp_path: Path) -> None:
    names = ["model-1.safetensors", "model-2.safetensors"]
    save_file({"a": torch.ones(2)}, tmp_path / names[0])
    save_file({"b": torch.ones(3)}, tmp_path / names[1])
    (tmp_path / ".weights.partial").mkdir()
    (tmp_path / ".weights.partial" / "__1_0.distcp").write_bytes(b"half")
    to_dcp(tmp_path, names)
    assert {entry.name for entry in (tmp_path / "weights").iterdir()} == {".metadata", "__0_0.distcp"}
    written = (tmp_path / "weights" / "__0_0.distcp").read_bytes()
    assert [entry.name for entry in tmp_path.iterdir()] == ["weights"]
    (tmp_path / names[1]).touch()  # killed before it was removed
    to_dcp(tmp_path, names)
    assert [entry.name for entry in tmp_path.iterdir()] == ["weights"]
    assert (tmp_path / "weights" / "__0_0.distcp").read_bytes() == written


def test_an_output_that_exists_is_untouched_without_overwrite(run: Path, tmp_path: Path) -> None:
    output = lawa.average(run, output=tmp_path / "out", last=2)
    before = (output / "manifest.json").read_text()
    with pytest.raises(
        UsageError, match=r"out exists already; choose another --output, or replace it with --overwrite"
    ):
        lawa.average(run, output=output, last=3)
    assert (output / "manifest.json").read_text() == before
    check(lawa.average(run, output=output, last=3, overwrite=True), (200, 300, 400))


def test_an_output_in_an_input_and_the_other_way_around(run: Path, tmp_path: Path) -> None:
    before = sorted(run.rglob("*"))
    link = tmp_path / "link"
    link.symlink_to(run / "checkpoint-100")
    for output in (run / "checkpoint-100" / "average", link / "deep" / "average"):
        with pytest.raises(UsageError, match=r"average lies in the input .*checkpoint-100; choose an --output outside"):
            lawa.average(run, output=output)
    with pytest.raises(UsageError, match=r"the input .*checkpoint-100 lies in .*run; choose an --output without it"):
        lawa.average(run, output=run, rolling=True, window=2)
    assert sorted(run.rglob("*")) == before


def test_room_is_looked_for_before_anything_is_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = lawa.average(run, output=tmp_path / "out", dry_run=True)
    monkeypatch.setattr(door.shutil, "disk_usage", lambda place: SimpleNamespace(free=told["bytes_written"] - 1))
    with pytest.raises(LawaError, match=r"has 0\.0 GB of room, and the outputs need 0\.0 GB; choose another --output"):
        lawa.average(run, output=tmp_path / "out")
    assert {entry.name for entry in tmp_path.iterdir()} == {"run"}
    twice = 2 * told["bytes_written"]  # DCP's files are written while the others are there
    monkeypatch.setattr(door.shutil, "disk_usage", lambda place: SimpleNamespace(free=twice - 1))
    with pytest.raises(LawaError, match=r"the outputs need 0\.0 GB"):
        lawa.average(run, output=tmp_path / "out", format="dcp")
    assert {entry.name for entry in tmp_path.iterdir()} == {"run"}
    monkeypatch.setattr(door.shutil, "disk_usage", lambda place: SimpleNamespace(free=twice))
    lawa.average(run, output=tmp_path / "out", format="dcp")


def test_inputs_with_the_same_content_are_refused(run: Path, tmp_path: Path) -> None:
    save_file(state(100), run / "checkpoint-300" / "model.safetensors")
    with pytest.raises(LawaError, match=r"checkpoint-100 and .*checkpoint-300 have the same content; .*--allow-dupl"):
        lawa.average(run, output=tmp_path / "out")
    assert lawa.average(run, output=tmp_path / "out", dry_run=True)["duplicates"] == [
        [str(run / "checkpoint-100"), str(run / "checkpoint-300")]
    ]
    assert lawa.average(run, output=tmp_path / "out", allow_duplicates=True).is_dir()


def test_a_failure_leaves_nothing(run: Path, tmp_path: Path) -> None:
    bad = state(200)
    bad["w"][2, 1] = float("nan")
    save_file(bad, run / "checkpoint-200" / "model.safetensors")
    with pytest.raises(LawaError, match=r"'w' of .*checkpoint-200"):
        lawa.average(run, output=tmp_path / "out")
    assert {entry.name for entry in tmp_path.iterdir()} == {"run"}
    assert lawa.average(run, output=tmp_path / "out", allow_non_finite=True).is_dir()


def test_an_iterator_that_nobody_reads_has_checked_everything_and_leaves_nothing(run: Path, tmp_path: Path) -> None:
    torch.save(
        state(500), run / "ckpt_500.pt", _use_new_zipfile_serialization=False
    )  # loaded whole, into scratch files
    paths = lawa.average(run, output=tmp_path / "out", rolling=True, window=2, ignore=["count"])
    assert any(entry.name.startswith(".out.scratch-") for entry in tmp_path.iterdir())
    del paths
    assert {entry.name for entry in tmp_path.iterdir()} == {"run"}
    with pytest.raises(UsageError, match="a window of 9"):
        lawa.average(run, output=tmp_path / "out", rolling=True, window=9)


def test_what_a_killed_process_left_in_scratch_is_swept(run: Path, tmp_path: Path) -> None:
    (tmp_path / ".out.scratch-old").mkdir()
    (tmp_path / ".other.scratch-old").mkdir()
    (tmp_path / ".out.scratch-live").mkdir()
    held = os.open(tmp_path / ".out.scratch-live", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)  # as a process that lives holds it
    torch.save(state(500), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    lawa.average([run / "checkpoint-100", tmp_path / "old.pt"], output=tmp_path / "out")
    os.close(held)
    there = {entry.name for entry in tmp_path.iterdir()}
    assert there == {"run", "old.pt", "out", ".other.scratch-old", ".out.scratch-live"}


def test_a_dry_run_tells_everything_and_writes_nothing(run: Path, tmp_path: Path) -> None:
    told = lawa.average(run, output=tmp_path / "out", last=3, coefficients="linear", dry_run=True, threads=2)
    [output] = told["outputs"]
    assert output == {"path": str(tmp_path / "out"), "inputs": [0, 1, 2], "coefficients": coefficients("linear", 3)}
    assert [(one["step"], one["format"], one["read"]) for one in told["inputs"]] == [
        (step, "hf", "in place") for step in (200, 300, 400)
    ]
    assert told["inputs"][0]["dtypes"] == {"float32": 15, "bfloat16": 7, "int64": 1}
    assert told["tensors"]["latest"] == ["count"]
    assert told["bytes_read"] == 3 * (15 * 4 + 7 * 2) + 8
    assert {entry.name for entry in tmp_path.iterdir()} == {"run"}
    written = lawa.average(run, output=tmp_path / "out", last=3)
    assert told["bytes_written"] == (written / "model.safetensors").stat().st_size
    torch.save(state(500), run / "ckpt_500.pt", _use_new_zipfile_serialization=False)
    told = lawa.average(run, output=tmp_path / "new", dry_run=True)
    assert [one["read"] for one in told["inputs"]] == ["unknown"] * 4 + ["loaded whole"]
    assert (told["tensors"], told["bytes_read"]) == (None, None)
    assert {entry.name for entry in tmp_path.iterdir()} == {"run", "out"}


def test_outputs_are_uploaded_each_to_its_branch_and_all_are_published_where_one_is_not(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed: list[tuple[Any, ...]] = []

    def push(directory: Path, repo: str, *, branch: str | None, title: str) -> str:
        pushed.append((directory, repo, branch, title))
        if branch == "window2-step00000200":
            raise LawaError("the hub is full")
        return "address"

    def reserve(repo: str, *, private: bool | None) -> None:
        pushed.append((repo, private))

    monkeypatch.setenv("HF_TOKEN", "hf_none")
    monkeypatch.setattr("lawa.offline.push.push", push)
    monkeypatch.setattr("lawa.offline.push.reserve", reserve)
    lawa.average(run, output=tmp_path / "one", push_to_hub="me/tiny", private=True)
    assert pushed == [("me/tiny", True), (tmp_path / "one", "me/tiny", None, "one")]
    pushed.clear()
    done: list[Path] = []
    paths = lawa.average(run, output=tmp_path / "all", rolling=True, window=[2, 4], push_to_hub="me/tiny")
    with pytest.raises(LawaError, match="the hub is full"):
        done.extend(paths)
    steps = ["window2-step00000200", "window2-step00000300", "window2-step00000400", "window4-step00000400"]
    assert [one[2] for one in pushed[1:]] == steps
    assert [path.relative_to(tmp_path / "all").as_posix().replace("/", "-") for path in done] == steps
    assert {entry.name for entry in tmp_path.iterdir()} == {"run", "one", "all"}


def test_where_an_upload_goes_is_settled_before_anything_is_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reserve(repo: str, *, private: bool | None) -> None:
        assert {entry.name for entry in tmp_path.iterdir()} == {"run"}
        raise LawaError("you may not")

    monkeypatch.setenv("HF_TOKEN", "hf_none")
    monkeypatch.setattr("lawa.offline.push.reserve", reserve)
    with pytest.raises(LawaError, match="you may not"):
        lawa.average(run, output=tmp_path / "out", push_to_hub="me/tiny")
    with pytest.raises(UsageError, match="push_to_hub='tiny' must be ORG/NAME"):
        lawa.average(tmp_path / "none", output=tmp_path / "out", push_to_hub="tiny")
    assert {entry.name for entry in tmp_path.iterdir()} == {"run"}


def test_the_configuration_tells_the_dtype_that_the_weights_are_in(tmp_path: Path) -> None:
    """The masters of a model that was trained in bf16: loaded by its configuration they would be rounded."""
    model = made.neox()
    for step in (1, 2):
        model.save_pretrained(tmp_path / f"step{step}")
        config = read_json(tmp_path / f"step{step}" / "config.json")
        (tmp_path / f"step{step}" / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    inputs = [tmp_path / "step1", tmp_path / "step2"]
    output = lawa.average(inputs, output=tmp_path / "out", allow_duplicates=True)
    assert AutoModelForCausalLM.from_pretrained(output).dtype == torch.float32


@pytest.mark.parametrize("touched", [False, True])
def test_a_job_whose_inputs_are_put_together_in_scratch_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, touched: bool
) -> None:
    monkeypatch.setattr("lawa.offline.plan.ITEM", 4)
    inputs = [tmp_path / f"old{step}.pt" for step in (100, 200)]
    for file in inputs:
        torch.save(state(int(file.stem[3:])), file, _use_new_zipfile_serialization=False)

    def stop(what: str, done: int, total: int) -> None:
        if what == "averaging" and done >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lawa.average(inputs, output=tmp_path / "out", threads=1, progress=stop)
    if touched:
        os.utime(inputs[1], ns=(1, 1))
    told: list[int] = []
    progress = {"averaging": told.append}
    lawa.average(
        inputs, output=tmp_path / "out", progress=lambda what, done, _: progress.get(what, lambda done: None)(done)
    )
    assert (told[0], told[-1]) == (0 if touched else 9, 23)  # items of 1, 4, 4, …
    check(tmp_path / "out", (100, 200))
    assert {entry.name for entry in tmp_path.iterdir()} == {"old100.pt", "old200.pt", "out"}


def test_room_for_scratch_files_is_looked_for_once_it_is_known_how_large_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four inputs the first finds room; the three others would not, and are not read."""
    inputs = [tmp_path / f"old{step}.pt" for step in STEPS]
    for file in inputs:
        torch.save(state(int(file.stem[3:])), file, _use_new_zipfile_serialization=False)
    each = 15 * 4 + 7 * 2 + 8
    told: list[tuple[str, int, int]] = []
    for free, fits in ((3 * each - 1, False), (3 * each, True)):
        monkeypatch.setattr(door.shutil, "disk_usage", lambda place, free=free: SimpleNamespace(free=free))
        monkeypatch.setattr(door, "_check_room", lambda *at, **how: None)
        told.clear()
        if fits:
            lawa.average(inputs, output=tmp_path / "out", progress=lambda *one: told.append(one))
        else:
            with pytest.raises(LawaError, match=r"the tensors of 3 more inputs of format torch need .*an --output on"):
                lawa.average(inputs, output=tmp_path / "out", progress=lambda *one: told.append(one))
            assert not (tmp_path / "out").exists()
        assert [done for what, done, _ in told if what == "reading"] == ([1, 2, 3, 4] if fits else [])


def test_what_may_be_a_mistake_is_a_warning(run: Path, tmp_path: Path) -> None:
    (run / "checkpoint-300").rename(tmp_path / "elsewhere")
    with pytest.warns(UserWarning, match=r"not evenly spaced \(400 comes after 200\); windows count checkpoints"):
        lawa.average(run, output=tmp_path / "out", last=3)
    lawa.average(run, output=tmp_path / "all")


def test_progress_is_told(run: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    lawa.average(run, output=tmp_path / "out", verify=True, progress=lambda *one: told.append(one))
    assert [one for one in told if one[0] == "reading"] == [("reading", n, 4) for n in (1, 2, 3, 4)]
    assert told[-2:] == [("averaging", 23, 23), ("verifying", 1, 1)]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"threads": -1}, "threads=-1 must be a whole number, and at least 1"),
        ({"format": "gguf"}, "format='gguf' must be one of hf, dcp"),
        ({"shard_size": "5 things"}, "shard_size='5 things' is no size"),
        ({"coefficients": "steep"}, "coefficients='steep' is unknown"),
        ({"steps": "1:2:3:4"}, "steps='1:2:3:4' is not A:B:S"),
        ({"dtype": "float16"}, "dtype='float16'"),
        ({"out_dtype": "int8"}, "out_dtype='int8'"),
        ({"buffers": "keep"}, "buffers='keep'"),
        ({"output": "."}, "output='.' must name a new directory"),
        ({"output": "/a/.."}, "output='/a/..' must name a new directory"),
    ],
)
def test_settings_that_are_none(run: Path, tmp_path: Path, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(LawaError, match=sentence):
        lawa.average(run, **{"output": tmp_path / "out", **settings})
    assert os.listdir(tmp_path) == ["run"]


@pytest.mark.parametrize(
    ("text", "expected"), [("5GB", 5 * 10**9), ("500 MB", 5 * 10**8), ("1.5GiB", 3 << 29), (7, 7), ("12", 12)]
)
def test_sizes(text: Any, expected: int) -> None:
    assert bytes_of(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "5XB", 0, "0GB"])
def test_sizes_that_are_none(text: Any) -> None:
    with pytest.raises(UsageError, match="is no size"):
        bytes_of(text)
