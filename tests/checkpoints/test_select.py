"""Which checkpoints are meant: names of trainers, folders, selections, and what is said of the others."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from lawa.checkpoints.select import Found, Selection, resolve, step_of, uneven, wanted
from lawa.errors import LawaError, UsageError


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("step1000", 1000), ("step00001000", 1000), ("step_20", 20), ("global_step5000", 5000), ("step0", 0),
        ("iter_0000123", 123), ("checkpoint-500", 500), ("ckpt_1000.pt", 1000), ("ckpt_000", 0),
        ("step1000-tokens4B", 1000), ("stage1-step1000-tokens5B", 1000), ("step-480k-token-1007B", 480_000),
        ("step-001000-2BT", 1000), ("stage1-step-40000", 40_000), ("epoch=1-step=1000.ckpt", 1000),
        ("CrystalCoder_phase2_checkpoint_055500", 55_500), ("ministage2_ckpt_012", 12), ("spike_ckpt_160", 160),
        ("checkpoint_3_step_1000", 1000), ("Step_10", 10), ("iteration40", 40),
        ("main", None), ("final", None), ("model.safetensors", None), ("model-00001-of-00002.safetensors", None),
        ("checkpoint-00001-of-00002.bin", None), ("layer_00-model_00-model_states.pt", None),
        ("footstep9x", None), ("timestep5", None), ("v2", None), ("step", None),
    ],
)  # fmt: skip
def test_the_step_that_a_name_tells(name: str, step: int | None) -> None:
    assert step_of(name) == step


def folder(path: Path, *names: str) -> Path:
    for name in names:
        entry = path / name
        if entry.suffix and "=" not in name and not name.startswith("."):
            entry.parent.mkdir(parents=True, exist_ok=True)
            entry.touch()
        else:
            entry.mkdir(parents=True)
    return path


def steps(*inputs: Path | str, rolling: bool = False, **selection: Any) -> list[int | None]:
    return [one.step for one in resolve(inputs, Selection(**selection), trajectory=rolling)]


def test_a_folder_is_taken_by_number(tmp_path: Path) -> None:
    run = folder(tmp_path / "a", "checkpoint-1000", "checkpoint-500", "checkpoint-20", "runs", ".checkpoint-7", "logs")
    folder(run, "tmp-checkpoint-1500")
    (run / "step3.txt").touch()
    found = resolve([run], Selection())
    assert [one.step for one in found] == [20, 500, 1000]
    assert found[0] == Found(label=str(run / "checkpoint-20"), step=20, path=run / "checkpoint-20")
    files = folder(tmp_path / "b", "ckpt_9.pt", "ckpt_10.pt", "ckpt_11.safetensors")
    assert steps(files) == [9, 10, 11]


def test_a_run_of_ours_is_its_checkpoints(tmp_path: Path) -> None:
    run = folder(tmp_path / "run", "checkpoints/step00000010", "checkpoints/step00000002", "averages/lawa/step00000010")
    assert steps(run) == steps(run / "checkpoints") == [2, 10]
    assert steps(run / "averages" / "lawa") == [10]
    (tmp_path / "new" / "checkpoints").mkdir(parents=True)
    with pytest.raises(LawaError, match="new/checkpoints holds no checkpoint yet"):
        steps(tmp_path / "new")


def test_what_is_named_one_by_one_keeps_its_order(tmp_path: Path) -> None:
    run = folder(tmp_path, "step2", "step1", "final", "other/step5", "other/step4")
    named = [run / "step2", run / "final", run / "step1"]
    assert steps(*named) == [2, None, 1]
    assert [one.path for one in resolve(named, Selection())] == named
    assert steps(run / "final", run / "other", run / "step1") == [None, 4, 5, 1]


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ({"steps": "200:600:200"}, [200, 400, 600]),
        ({"steps": "150:450"}, [200, 300, 400]),
        ({"steps": "700,100"}, [100, 700]),
        ({"steps": [300, 100]}, [100, 300]),
        ({"steps": range(100, 300, 100)}, [100, 200]),
        ({"steps": "300"}, [300]),
        ({"last": 2}, [900, 1000]),
        ({"before": 300}, [100, 200]),
        ({"before": 500, "last": 2}, [300, 400]),
        ({"steps": "200:1000:200", "before": 900, "last": 3}, [400, 600, 800]),
    ],
)
def test_what_is_selected(tmp_path: Path, selection: dict[str, Any], expected: list[int]) -> None:
    run = folder(tmp_path, *(f"step{step}" for step in range(100, 1100, 100)))
    assert steps(run, **selection) == expected
    # So are single checkpoints, whatever order the shell has put them in.
    assert steps(*sorted(run.iterdir()), **selection) == expected


def test_each_trajectory_is_selected_from_and_what_is_named_stays(tmp_path: Path) -> None:
    folder(tmp_path, "a/step1", "a/step2", "a/step3", "b/step7", "b/step8", "final")
    assert steps(tmp_path / "a", tmp_path / "final", tmp_path / "b", last=2) == [2, 3, None, 7, 8]


@pytest.mark.parametrize(
    ("selection", "sentence"),
    [
        ({"steps": "100:400:100"}, r"run has no checkpoint of step 300; it has 100, 200, 500$"),
        ({"steps": [6, 5]}, r"of step 5; it has"),
        ({"steps": "0:100000000000:1"}, r"of step 0; it has"),
        ({"steps": range(10**11)}, r"of step 0; it has"),
        ({"steps": range(500, 0, -100)}, r"of step 300; it has"),
        ({"steps": "600:900"}, "has no checkpoint that was asked for; it has 100, 200, 500"),
        ({"before": 100}, "has no checkpoint that was asked for"),
        ({"last": 4}, "run has 3 checkpoints to take the last 4 of"),
    ],
)
def test_what_is_not_there_is_named(tmp_path: Path, selection: dict[str, Any], sentence: str) -> None:
    folder(tmp_path / "run", "step100", "step200", "step500")
    with pytest.raises(LawaError, match=sentence):
        steps(tmp_path / "run", **selection)


@pytest.mark.parametrize(
    "text",
    ["a", "1:2:3:4", "3:1", "3:1:1", "1:5:0", "1:5:-1", "1,,2", ":", "1:", [100, "200"], [1.5], [], range(0), 100],
)
def test_steps_that_are_none(text: Any) -> None:
    with pytest.raises(UsageError, match="steps="):
        Selection(steps=text)


def test_a_selection_of_nothing() -> None:
    with pytest.raises(UsageError, match="last=0 must be at least 1"):
        Selection(last=0)
    wrong: list[dict[str, Any]] = [{"last": "3"}, {"before": 1.5}]
    for selection in wrong:
        with pytest.raises(UsageError, match=r"(last|before)=.* must be a whole number"):
            Selection(**selection)
    with pytest.raises(UsageError, match="no input was named"):
        resolve([], Selection())


def test_windows_roll_along_one_trajectory(tmp_path: Path) -> None:
    folder(tmp_path, "a/step3", "a/step1", "b/step2", "final")
    assert steps(tmp_path / "a", rolling=True) == [1, 3]
    assert steps(tmp_path / "a" / "step3", tmp_path / "b" / "step2", rolling=True) == [2, 3]
    with pytest.raises(UsageError, match="windows roll along one trajectory"):
        steps(tmp_path / "a", tmp_path / "b", rolling=True)
    with pytest.raises(UsageError, match="final tells no step"):
        steps(tmp_path / "final", tmp_path / "b" / "step2", rolling=True)


def test_two_of_one_step_are_refused(tmp_path: Path) -> None:
    folder(tmp_path, "step5", "step005")
    with pytest.raises(UsageError, match=r"step0*5 and .*step0*5 are both step 5 of"):
        steps(tmp_path)


def test_a_checkpoint_that_holds_others_is_not_guessed(tmp_path: Path) -> None:
    """A trainer's output folder, with the final model in it."""
    run = folder(tmp_path, "checkpoint-1", "checkpoint-2", "model.safetensors")
    with pytest.raises(UsageError, match=r"is a checkpoint and holds 2 others \(step 1, 2\); --last 2 averages those"):
        steps(run)
    assert steps(run, last=2) == [1, 2]
    assert steps(run / "model.safetensors") == [None]


def on_deepspeed(checkpoint: Path, *, export: bool = True) -> Path:
    """As transformers' Trainer writes it."""
    step = step_of(checkpoint.name) or 7
    folder(checkpoint, f"global_step{step}", *(["model.safetensors"] if export else []))
    (checkpoint / "latest").write_text(f"global_step{step}")
    return checkpoint


@pytest.mark.parametrize("export", [True, False])
def test_a_trainers_checkpoint_on_deepspeed_is_one(tmp_path: Path, export: bool) -> None:
    """ZeRO-3 may write none of its weights beside the masters."""
    run = tmp_path / "run"
    a, b = (on_deepspeed(run / f"checkpoint-{step}", export=export) for step in (500, 1000))
    assert [(one.step, one.path) for one in resolve([a], Selection())] == [(500, a)]
    assert [one.path for one in resolve([b, a], Selection(last=2))] == [a, b]
    assert [one.path for one in resolve([a, b], Selection(), trajectory=True)] == [a, b]
    assert [one.path for one in resolve([run], Selection(last=1))] == [b]
    assert [one.path for one in resolve([a / "global_step500"], Selection())] == [a / "global_step500"]


def test_what_a_trainer_on_zero3_saves_once_more_is_taken_once(tmp_path: Path) -> None:
    """transformers' save_model() after the last checkpoint, or some steps after it."""
    run = on_deepspeed(tmp_path / "run", export=False)
    checkpoints = [on_deepspeed(run / f"checkpoint-{step}", export=False) for step in (5, 7)]
    assert [one.path for one in resolve([run], Selection())] == checkpoints
    shutil.rmtree(checkpoints[1])
    assert [one.path for one in resolve([run], Selection())] == [checkpoints[0], run / "global_step7"]


def test_a_deepspeed_folder_of_several_steps_is_a_trajectory(tmp_path: Path) -> None:
    saved = on_deepspeed(folder(tmp_path / "saved", "global_step3"), export=False)
    assert steps(saved) == [3, 7]
    only = on_deepspeed(tmp_path / "only", export=False)
    assert [one.path for one in resolve([only], Selection(last=1))] == [only / "global_step7"]
    (saved / "model.safetensors").touch()
    with pytest.raises(UsageError, match="is a checkpoint and holds 2 others"):
        steps(saved)


def test_a_range_of_steps_is_never_listed(tmp_path: Path) -> None:
    run = folder(tmp_path, *(f"step{step}" for step in range(5)))
    assert steps(run, steps=range(5)) == [0, 1, 2, 3, 4]
    exact, inside = wanted("0:100000000000:10")
    assert (exact, inside(10**11)) == (range(0, 10**11 + 1, 10), True)


def test_what_is_no_path_and_no_repo(tmp_path: Path) -> None:
    with pytest.raises(LawaError, match=r"nowhere/at/all does not exist; name a checkpoint, a run's directory, or ORG"):
        resolve([str(tmp_path / "nowhere/at/all")], Selection())


def test_a_gap_is_found(tmp_path: Path) -> None:
    def gap(*steps: int) -> tuple[int, int] | None:
        return uneven([Found(label="", step=step) for step in steps])

    assert gap() is gap(1) is gap(1, 5) is gap(1000, 2000, 3000) is None
    assert gap(1000, 2000, 4000, 5000) == (2000, 4000)
    assert gap(1, 2, 4, 8) == (2, 4)


@pytest.mark.parametrize("tag", ["../elsewhere", "/elsewhere"])
def test_a_latest_that_names_another_place_is_refused(tag: str, tmp_path: Path) -> None:
    (tmp_path / "run" / "step1").mkdir(parents=True)
    (tmp_path / "run" / "latest").write_text(tag)
    with pytest.raises(LawaError, match="which is not in its directory; do not use"):
        resolve([tmp_path / "run"], Selection())
