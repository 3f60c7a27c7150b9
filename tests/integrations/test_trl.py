"""LawaCallback in TRL's SFTTrainer, whole and with LoRA, against averages made by hand of the weights seen."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainerCallback

from integrations.tiny_hf import QUIET, Notes, checkpoints, mean, model, same, tokenizer, weights
from lawa.integrations.transformers import LawaCallback

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),
]
ROOT = Path(__file__).parents[2]
TEXTS = Dataset.from_dict({"text": [f"w{i} w{i + 1} w{i + 2} w{i % 5}" for i in range(20)]})


def trainer_of(output: Path, *callbacks: TrainerCallback, lm: Any = None, peft: Any = None, **changes: Any) -> Any:
    from trl import SFTConfig, SFTTrainer

    return SFTTrainer(
        lm or model(), SFTConfig(str(output), **(QUIET | changes), max_length=16, packing=False), train_dataset=TEXTS,
        eval_dataset=TEXTS.select(range(6)), processing_class=tokenizer(), callbacks=list(callbacks), peft_config=peft,
    )  # fmt: skip


def measured(metrics: dict[str, float]) -> dict[str, float]:
    """What two evaluations of the same weights have in common."""
    return {
        key: value for key, value in metrics.items() if not key.endswith(("_second", "_runtime", "_time", "_tokens"))
    }


def test_averages_are_evaluated_beside_the_model_and_change_nothing(tmp_path: Path) -> None:
    """TRL's trainers note more metrics beside the loop: those of the model stay its own."""
    notes = Notes()
    settings = {"eval_strategy": "steps", "eval_steps": 3}
    plain = trainer_of(tmp_path / "plain", **settings)
    plain.train()
    trainer = trainer_of(tmp_path / "lawa", notes, **settings)
    lawa = LawaCallback(mode="evaluate", every=1, window=3).attach(trainer)
    trainer.train()
    assert same(weights(trainer.model), weights(plain.model))

    for own, bare in zip(trainer.state.log_history, plain.state.log_history, strict=True):
        without = {key: value for key, value in own.items() if "_lawa_" not in key}
        assert measured(without) == measured(bare)
    record = next(record for record in trainer.state.log_history if record["step"] == 6 and "eval_loss" in record)
    average = mean([notes.ended[t] for t in (4, 5, 6)])
    for name, parameter in plain.model.named_parameters():
        parameter.data.copy_(torch.from_numpy(average[name]))
    found = measured({key.replace("_lawa_", "_"): value for key, value in record.items() if "_lawa_" in key})
    assert {"eval_loss", "eval_mean_token_accuracy", "eval_entropy"} <= found.keys()
    assert found == {key: value for key, value in plain.evaluate().items() if key in found}
    with lawa.averager.averaged() as averaged:
        assert same(weights(averaged), average)


def test_replacing_resumed_in_the_middle_of_a_window(tmp_path: Path) -> None:
    notes = Notes()
    settings = {"mode": "replace", "every": 2, "window": 2}
    saving = {"save_strategy": "steps", "save_steps": 4}
    straight = trainer_of(tmp_path, notes, **saving)
    whole = LawaCallback(**settings).attach(straight)
    straight.train()
    assert same(notes.begun[5], mean([notes.ended[2], notes.ended[4]]))
    assert same(weights(straight.model), mean([notes.ended[4], notes.ended[6]]))

    resumed = trainer_of(tmp_path, **saving)
    lawa = LawaCallback(**settings).attach(resumed)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert same(weights(resumed.model), weights(straight.model))
    assert lawa.averager.steps() == whole.averager.steps() == [4, 6]
    last = tmp_path / "checkpoint-6/averages/lawa"
    assert same(weights(AutoModelForCausalLM.from_pretrained(last)), mean([notes.ended[4], notes.ended[6]]))
    assert (last / "tokenizer.json").is_file()


@pytest.mark.filterwarnings("ignore:the model has LoRA matrices")
def test_adapters_are_averaged_saved_and_loaded_as_the_best(tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel

    notes = Notes()
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    trainer = trainer_of(
        tmp_path, notes, peft=lora,
        eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2, save_total_limit=1,
        metric_for_best_model="eval_lawa_loss", load_best_model_at_end=True,
    )  # fmt: skip
    lawa = LawaCallback(mode="evaluate", every=1, window=2).attach(trainer)
    trainer.train()
    assert all("lora_" in name for name in lawa.averager.state_dict()["snapshots"]["00000006"])
    best = trainer.state.best_global_step
    assert checkpoints(tmp_path) == [best]
    average = mean([notes.ended[best - 1], notes.ended[best]])
    assert same(weights(trainer.model), average)
    directory = tmp_path / f"checkpoint-{best}/averages/lawa"
    assert not (directory / "model.safetensors").exists()
    assert same(weights(PeftModel.from_pretrained(model(), directory)), average)


def test_lora_is_warned_about(tmp_path: Path) -> None:
    from peft import LoraConfig

    trainer = trainer_of(tmp_path, peft=LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    LawaCallback(mode="evaluate", every=1, window=2).attach(trainer)
    with pytest.warns(UserWarning, match="the average of A and the average of B is not the average of BA"):
        trainer.train()


def test_the_example(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples/trl_sft.py"), str(tmp_path)],
        capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    own, average = (float(line.rsplit(" ", 1)[1]) for line in done.stdout.strip().splitlines()[-2:])
    assert average < own
