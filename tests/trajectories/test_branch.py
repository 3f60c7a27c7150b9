"""Straight to N + k, against stopped at N, released in each public format, fetched, and branched to N + k."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from hub_server import serving
from lawa.cli import main
from lawa.errors import LawaError, UsageError
from lawa.trajectories.branch import Branch, Request
from pretrain.driving import assert_same, weights
from trajectories.branching import Family, amber, lines, olmo, pythia
from twins import array, uniform


@pytest.fixture(scope="module")
def neox(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return pythia(tmp_path_factory.mktemp("neox"))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def branch(trajectory: str, output: Path, **settings: Any) -> list[Path]:
    asked = {"steps": [6], "updates": 4, "window": 3, "held_out": 6, "evaluate_every": 2, **settings}
    [folders] = Branch(Request(trajectory=trajectory, **asked), output).run()
    return folders


def assert_straight(run: Path, family: Family, *steps: int) -> None:
    """The same bits as the run that was never stopped."""
    for step in steps:
        made = run / "checkpoints" / f"step{step:08}"
        assert_same(weights(made), weights(family.checkpoint(step)))
    ours, theirs = lines(run, "train"), lines(family.run, "train")
    assert {t: (one["loss"], one["lr"], one["grad_norm"]) for t, one in ours.items()} == {
        t: (one["loss"], one["lr"], one["grad_norm"]) for t, one in theirs.items() if 6 < t <= 10
    }


def average_of(family: Family, *steps: int) -> dict[str, Any]:
    held = [weights(family.checkpoint(step)) for step in steps]
    return {name: uniform([array(one[name]) for one in held]) for name in held[0]}


def test_pythia_with_its_optimizer_state_has_the_bits_of_the_run(
    neox: Family, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(neox.repos, cache, monkeypatch) as hub:
        plain, replace, released = branch(neox.yaml(tmp_path), tmp_path / "out")
    assert [one.name for one in (plain, replace, released)] == ["plain", "replace", "released"]
    assert_straight(plain, neox, 8, 10)
    # The window is full from the beginning: of released checkpoints, and at 6 of the masters.
    assert lines(plain, "evaluation")[6]["snapshots"] == {"lawa": 3}
    assert_same(weights(plain / "averages" / "lawa" / "step00000010"), average_of(neox, 6, 8, 10))
    # Replaced at once: training goes on from the average of 2, 4 and 6.
    assert list(lines(replace, "replacement")) == [6, 8, 10]
    assert lines(replace, "evaluation")[6]["losses"] == lines(plain, "evaluation")[6]["losses"]
    assert lines(replace, "train")[7]["loss"] != lines(plain, "train")[7]["loss"]
    # The run's own next checkpoints, on the same text.
    for step, line in lines(released, "evaluation").items():
        assert line["losses"]["plain"] == lines(plain, "evaluation")[step]["losses"]["plain"]
    assert list(lines(released, "evaluation")) == [6, 8, 10]
    # Of the data no more was fetched than updates 7 to 10 and the held-out batches read.
    sent = [asked for name, asked in hub.ranges if name.startswith("document")]
    assert sum(int(one[6:].split("-")[1]) - int(one[6:].split("-")[0]) + 1 for one in sent if one) == 6 * 4 * 34


@pytest.mark.parametrize("layout", [{"ranks": 3, "layout": "stage2"}, {"model_parallel": 2, "step": False}])
def test_other_layouts_of_the_optimizers_state(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, layout: dict[str, Any]
) -> None:
    """Two model-parallel ranks cannot hold the same fp32 sums of biases: their masters are told, not their halves."""
    (tmp_path / "family").mkdir()
    family = pythia(tmp_path / "family", **layout)
    with serving(family.repos, cache, monkeypatch):
        plain, _ = branch(family.yaml(tmp_path), tmp_path / "out", arms=["plain"])
    if "model_parallel" not in layout:
        assert_straight(plain, family, 8, 10)
    first = lines(plain, "train")[7], lines(family.run, "train")[7]
    assert first[0]["lr"] == first[1]["lr"]
    assert first[0]["loss"] == pytest.approx(first[1]["loss"], rel=1e-6)


def test_olmo_with_its_optimizer_state_has_the_bits_of_the_run(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repos: dict[str, Any] = {}
    with serving(repos, cache, monkeypatch) as hub:
        (tmp_path / "family").mkdir()
        family = olmo(tmp_path / "family", hub.endpoint)
        hub.repos.update(family.repos)
        plain, _ = branch(family.yaml(tmp_path), tmp_path / "out", arms=["evaluate"])
    assert_straight(plain, family, 8, 10)
    assert_same(weights(plain / "averages" / "lawa" / "step00000010"), average_of(family, 6, 8, 10))


def test_amber_has_the_weights_and_the_batches_and_fresh_moments(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The documented gap: without moments the first loss is the run's own, and the first step is another."""
    (tmp_path / "family").mkdir()
    family = amber(tmp_path / "family")
    with serving(family.repos, cache, monkeypatch):
        plain, released = branch(family.yaml(tmp_path), tmp_path / "out", arms=["plain"])
    ours, theirs = lines(plain, "train"), lines(family.run, "train")
    assert (ours[7]["loss"], ours[7]["grad_norm"]) == (theirs[7]["loss"], theirs[7]["grad_norm"])
    assert ours[8]["loss"] != theirs[8]["loss"]
    assert lines(released, "evaluation")[6] == lines(plain, "evaluation")[6]
    assert json.loads((plain / "run.json").read_text())["config"]["training"]["rewarmup"] == 1


def test_half_precision_weights_without_state_are_the_other_gap(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "family").mkdir()
    family = pythia(tmp_path / "family", dtype=torch.float16)
    with serving(family.repos, cache, monkeypatch):
        plain, _ = branch(family.yaml(tmp_path, optimizer=None), tmp_path / "out", arms=["plain"])
    ours, theirs = lines(plain, "train")[7]["loss"], lines(family.run, "train")[7]["loss"]
    assert ours != theirs
    assert ours == pytest.approx(theirs, rel=2e-3)


def test_a_run_of_ones_own_needs_no_network(neox: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lawa.checkpoints.hub.pin", None)
    plain, replace, _ = branch(str(neox.run), tmp_path / "out")
    assert_straight(plain, neox, 8, 10)
    assert list(lines(replace, "replacement")) == [6, 8, 10]


def test_an_early_window_holds_what_there_is_and_arms_are_scaled(
    neox: Family, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"steps": [4], "window": 10, "lr_scales": [1.0, 4.0], "arms": ["plain", "evaluate", "replace", "clear"]}
    with serving(neox.repos, cache, monkeypatch):
        folders = branch(neox.yaml(tmp_path), tmp_path / "out", **settings)
    names = ["plain", "replace", "clear", "plain-lr4", "replace-lr4", "clear-lr4", "released"]
    assert [one.name for one in folders] == names
    assert lines(folders[0], "evaluation")[4]["snapshots"] == {"lawa": 2}
    assert lines(folders[0], "evaluation")[8]["snapshots"] == {"lawa": 4}
    assert list(lines(folders[1], "replacement")) == [4, 6, 8]
    assert list(lines(folders[2], "replacement")) == [4, 8]
    assert lines(folders[3], "train")[5]["lr"] == 4 * lines(folders[0], "train")[5]["lr"]


def test_a_killed_branch_goes_on_and_a_finished_one_does_nothing(
    neox: Family, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lawa.pretrain.loop import Loop

    class Killed(BaseException):
        pass

    step = Loop.step

    def die(self: Loop, t: int) -> Any:
        if t == 9 and "replace" in str(self.run):
            raise Killed
        return step(self, t)

    with serving(neox.repos, cache, monkeypatch) as hub:
        with monkeypatch.context() as patched:
            patched.setattr(Loop, "step", die)
            with pytest.raises(Killed):
                branch(neox.yaml(tmp_path), tmp_path / "out")
        began = len(hub.ranges)
        _, replace, _ = branch(neox.yaml(tmp_path), tmp_path / "out")
        assert [name for name, _ in hub.ranges[began:] if not name.startswith("pytorch")] == []
        _, never, _ = branch(neox.yaml(tmp_path), tmp_path / "never")
        before = {file: file.read_bytes() for file in (tmp_path / "out").rglob("metrics.jsonl")}
        with monkeypatch.context() as patched:
            patched.setattr(Loop, "step", None)
            patched.setattr("lawa.trajectories.released._loss", None)
            branch(neox.yaml(tmp_path), tmp_path / "out")
    assert_same(weights(replace / "final"), weights(never / "final"))
    assert before == {file: file.read_bytes() for file in (tmp_path / "out").rglob("metrics.jsonl")}
    assert len(before) == 3
    with pytest.raises(UsageError, match=r"holds another branch: its updates differ \(4 and not 2\)"):
        branch(neox.yaml(tmp_path), tmp_path / "out", updates=2)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"steps": [7]}, "tiny has no checkpoint of update 7; the nearest are of 6 and 8"),
        ({"updates": 7}, "7 updates after 6 go beyond the 12 of tiny"),
        ({"prefill": "none", "window": 3}, "'lawa' .* is first ready at update 12, after training.updates=10"),
        ({"arms": ["plane"]}, "'plane' is none of plain, evaluate, replace, clear"),
        ({"lr_scales": [0.0]}, "--lr-scale 0 must be above 0"),
        ({"schedule": "neox-2023"}, "no schedule 'neox-2023'; did you mean neox-2023-"),
        ({"settings": {"training.micro": 1}}, "unknown setting training.micro"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told_before_anything_is_fetched(
    neox: Family, tmp_path: Path, settings: dict[str, Any], sentence: str
) -> None:
    told = neox.yaml(tmp_path, optimizer=None)
    with pytest.raises((UsageError, LawaError), match=sentence):
        branch(told, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_prefill_none_starts_empty_and_replaces_once_it_is_full(
    neox: Family, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(neox.repos, cache, monkeypatch):
        _, replace, _ = branch(neox.yaml(tmp_path), tmp_path / "out", prefill="none", window=2)
    assert list(lines(replace, "replacement")) == [10]


def test_the_command_plans_trains_and_reports(
    neox: Family, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["branch", neox.yaml(tmp_path), "--step", "6", "--updates", "4", "--window", "3", "--held-out", "6",
             "--output", str(tmp_path / "out")]  # fmt: skip
    with serving(neox.repos, cache, monkeypatch):
        assert main([*asked, "--dry-run"]) == 0
        plan = capsys.readouterr().out
        assert not (tmp_path / "out").exists()
        for words in (
            "updates 7 … 10",
            "released moments",
            "holds at the beginning 2, 4, 6",
            "plain (plain, evaluate)",
        ):
            assert words in plan
        assert main(asked) == 0
    told = capsys.readouterr()
    assert "lawa branch: training plain (plain, evaluate)" in told.err
    page = tmp_path / "out" / "step00000006" / "report" / "report.html"
    assert str(page) in told.out
    assert "tiny as released" in page.read_text()
    final = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "step00000006" / "replace" / "final")
    assert final.config.model_type == "gpt_neox"
