"""The HF Trainer, in one process and in several (DDP), with LawaCallback; resumed from its own checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from contracts.contract import LAST, Adapter, During, Run, Tiny, batch, optimizer_of
from lawa.integrations.transformers import LawaCallback

ROWS = 4


class Batches(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """The rows of batch(1) … batch(LAST) in order; every rank of several reads all of each batch."""

    def __init__(self, world: int) -> None:
        self.rows = [row for t in range(1, LAST + 1) for _ in range(world) for row in batch(t)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"tokens": self.rows[i]}


class TinyTrainer(Trainer):
    """safetensors refuses the tied weights of a model that is not transformers' own."""

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if self.args.should_save and output_dir is not None:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            torch.save(self.model.state_dict(), Path(output_dir) / "pytorch_model.bin")


class Watch(TrainerCallback):
    """Calls `during`, and has the trainer save at `save_at`."""

    def __init__(self, lawa: LawaCallback, save_at: int | None, during: During | None) -> None:
        self.lawa, self.save_at, self.during = lawa, save_at, during

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.during:
            self.during(state.global_step, Run(kwargs["model"], self.lawa.averager))
        control.should_save = state.global_step == self.save_at


def run(
    settings: dict[str, Any], folder: Path, *,
    save_at: int | None = None, resume: bool = False, during: During | None = None,
) -> Run:  # fmt: skip
    model = Tiny()
    args = TrainingArguments(
        output_dir=str(folder), max_steps=LAST, per_device_train_batch_size=ROWS, max_grad_norm=0,
        lr_scheduler_type="constant", train_sampling_strategy="sequential", save_strategy="no", use_cpu=True,
        report_to="none", disable_tqdm=True, logging_strategy="no", log_level="error", dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,
    )  # fmt: skip
    trainer = TinyTrainer(
        model, args, train_dataset=Batches(args.world_size), optimizers=(optimizer_of(model), None)
    )  # fmt: skip
    lawa = LawaCallback(**settings, save_averages="none").attach(trainer)
    trainer.add_callback(Watch(lawa, save_at, during))
    trainer.train(resume_from_checkpoint=resume)
    return Run(model, lawa.averager)


ADAPTERS: dict[str, Adapter] = {"HF Trainer": run, "HF Trainer, DDP": run}
