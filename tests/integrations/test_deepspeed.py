"""The attachment to a DeepSpeed engine; what needs processes is in deepspeed_checks.py. The whole contract runs over
ZeRO 1, 2 and 3 in tests/contracts."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import twins
from launching import launch
from lawa import LawaError, WeightAverager
from lawa.integrations.deepspeed import attach

SCRIPT = Path(__file__).with_name("deepspeed_checks.py")
EXAMPLE = Path(__file__).parents[2] / "examples" / "deepspeed_zero.py"
EXPORTED = ("ZeRO-2", "ZeRO-3", "bf16 ZeRO-1", "bf16 ZeRO-3")
UNIVERSAL = "bf16 ZeRO-1, fp32 gradients"  # which zero_to_fp32 does not know
CHECKS = (
    "accumulated_micro_batches_are_one_update",
    "a_skipped_step_counts_and_is_marked",
    "what_is_not_there_is_said",
    "save_for_others",
)


class Engine(nn.Linear):
    """What an attachment asks of an engine: two micro-batches a step, of which the third one is skipped."""

    def __init__(self) -> None:
        super().__init__(1, 1)
        self.micro_steps = self.global_steps = 0

    def step(self) -> None:
        self.micro_steps += 1
        self.global_steps = self.micro_steps // 2

    def was_step_applied(self) -> bool:
        return self.global_steps != 3

    def save_checkpoint(self, save_dir: str, tag: str) -> bool:
        Path(save_dir, tag).mkdir(parents=True)
        return True

    def load_checkpoint(self, load_dir: str, tag: str, *, load_module_only: bool = False) -> tuple[str, dict[str, Any]]:
        return str(Path(load_dir, tag, "model_states.pt")), {"the": "client's"}


def test_it_updates_at_global_steps_until_it_is_removed() -> None:
    engine = Engine()
    averager = WeightAverager(engine, mode="evaluate", every=1, window=10)
    with attach(engine, averager):
        for _ in range(9):
            engine.step()
    assert averager.steps() == [1, 2, 3, 4]
    assert averager.skipped() == [3]
    engine.step()
    assert averager.step == 4
    assert engine.step.__func__ is Engine.step


def test_its_state_goes_with_the_engines_checkpoints(tmp_path: Path) -> None:
    engine = Engine()
    averager = WeightAverager(engine, mode="evaluate", every=1, window=2)
    attach(engine, averager)
    for _ in range(4):
        engine.step()
    assert engine.save_checkpoint(str(tmp_path), "two") is True
    with averager.averaged():
        engine.save_checkpoint(str(tmp_path), "average")
    assert not (tmp_path / "average" / "lawa").exists()
    fresh = Engine()
    again = WeightAverager(fresh, mode="evaluate", every=1, window=2)
    attach(fresh, again)
    fresh.load_checkpoint(str(tmp_path), "two", load_module_only=True)
    assert again.step == 0
    assert fresh.load_checkpoint(str(tmp_path), "two")[1] == {"the": "client's"}
    assert again.steps() == [1, 2]
    fresh.global_steps = 7  # which its own load_checkpoint would do
    with pytest.warns(UserWarning, match=r"average has no state of the averager \(lawa/\): .* start anew at update 7"):
        fresh.load_checkpoint(str(tmp_path), "average")
    assert (again.step, again.steps()) == (7, [])


def test_an_engine_has_one_averager_and_an_averager_one_engine() -> None:
    engine, other = Engine(), Engine()
    averager = WeightAverager(engine, mode="evaluate", every=1, window=10)
    handle = attach(engine, averager)
    for one in (averager, WeightAverager(engine, mode="evaluate", every=1, window=1)):
        with pytest.raises(LawaError, match=r"an averager is attached to the engine already.*averages={name: …}"):
            attach(engine, one)
    with pytest.raises(LawaError, match="the averager is attached already"):
        attach(other, averager)
    assert other.step.__func__ is Engine.step
    with pytest.raises(LawaError, match=r"do not call update\(\)"):
        averager.update()
    engine.step()
    engine.step()
    assert averager.steps() == [1]
    for _ in range(2):
        handle.remove()
    assert not {"step", "save_checkpoint", "load_checkpoint"} & vars(engine).keys()
    averager.update()
    assert averager.steps() == [1, 2]
    attach(engine, averager)
    handle.remove()  # the first one's, which has no say any more
    engine.micro_steps = 5
    engine.step()
    assert averager.steps() == [1, 2, 3]
    averager.close()
    assert engine.step.__func__ is Engine.step


def test_a_pipeline_engine_is_refused() -> None:
    class PipelineEngine(Engine):
        def train_batch(self) -> None: ...

    engine = PipelineEngine()
    with pytest.raises(LawaError, match=r"PipelineEngine steps inside train_batch\(\); call averager.update"):
        attach(engine, WeightAverager(engine, mode="evaluate", every=1, window=1))


@pytest.mark.slow
def test_two_ranks_and_deepspeeds_converters(tmp_path: Path) -> None:
    """What they make of an average has its bits; a tied one's other name is there, too."""
    pytest.importorskip("deepspeed")
    names = (*CHECKS, *(f"export:{way}" for way in (*EXPORTED, UNIVERSAL)))
    said = launch(SCRIPT, 2, str(tmp_path), *names)
    assert all(f"rank {rank}: {name}\n" in said for rank in range(2) for name in names)
    launch(SCRIPT, 1, str(tmp_path), "others_are_refused")
    for way in (*EXPORTED, UNIVERSAL):
        with np.load(tmp_path / f"{way}.npz") as file:
            average = dict(file)
        universal = ds_to_universal(tmp_path / way / "average", tmp_path / way / "universal")
        for name, values in average.items():
            assert twins.same_bits(universal(name).view(values.shape), values), (way, name)
    for way in EXPORTED:
        with np.load(tmp_path / f"{way}.npz") as file:
            average = dict(file)
        whole = zero_to_fp32(tmp_path / way, tmp_path / way / "whole")
        assert {*average, "head.weight"} <= set(whole)
        assert torch.equal(whole["head.weight"], whole["embed.weight"])
        for name, values in average.items():
            assert twins.same_bits(whole[name], values), (way, name)


def zero_to_fp32(checkpoints: Path, output: Path) -> dict[str, torch.Tensor]:
    command = [sys.executable, str(checkpoints / "zero_to_fp32.py"), str(checkpoints), str(output), "-t", "average"]
    subprocess.run(command, check=True, capture_output=True, timeout=100)
    return torch.load(output / "pytorch_model.bin", weights_only=True)


def ds_to_universal(checkpoint: Path, output: Path) -> Any:
    """What gives a parameter of the universal checkpoint by its name."""
    module = "deepspeed.checkpoint.ds_to_universal"
    folders = ["--input_folder", str(checkpoint), "--output_folder", str(output), "--inject_missing_state"]
    alone = ["--num_extract_workers", "1", "--num_merge_workers", "1"]
    subprocess.run([sys.executable, "-m", module, *folders, *alone], check=True, capture_output=True, timeout=100)

    def parameter(name: str) -> torch.Tensor:
        held = torch.load(output / "zero" / name / "fp32.pt", weights_only=False)
        return held["param"] if isinstance(held, dict) else held

    return parameter


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_example(stage: int, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    said = launch(EXAMPLE, 2, str(stage), str(tmp_path))
    found = re.search(r"update 300: loss (\d\.\d+), of the average (\d\.\d+)", said)
    assert found
    assert float(found[2]) < float(found[1])
    assert (tmp_path / "last" / "lawa" / "averager.json").exists()
