"""Lightning's trainer, with validation at every second update and a checkpoint that a callback of the user's writes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader

import twins
from contracts.contract import LAST, Adapter, During, Run, Tiny, Weights, batch, optimizer_of
from lawa.averaging.layout import full
from lawa.averaging.matching import canonical
from lawa.integrations.lightning import LawaCallback


class Module(Tiny, pl.LightningModule):
    def training_step(self, numbers: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self(batch(self.trainer.global_step + 1))["loss"]

    def validation_step(self, numbers: torch.Tensor, batch_idx: int) -> None:
        self.log("val_loss", self(batch(99))["loss"], sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return optimizer_of(self)


def unsharded(module: torch.nn.Module) -> Weights:
    """What a batch sees of FSDP2, whose memory numpy must not share: it would be resizable no more."""
    return {canonical(name): twins.array(full(parameter).clone()) for name, parameter in module.named_parameters()}


class Sharded(Module):
    """Under ModelParallelStrategy."""

    def __init__(self) -> None:
        super().__init__()
        self.read = unsharded

    def configure_model(self) -> None:
        mesh = self.device_mesh["data_parallel"]
        for part in (self.inner, self):
            fully_shard(part, mesh=mesh)


class Users(pl.Callback):
    """A callback of the user's, which comes before LawaCallback in the list."""

    def __init__(self, lawa: LawaCallback, file: Path, save_at: int | None, during: During | None) -> None:
        self.lawa, self.file, self.save_at, self.during = lawa, file, save_at, during

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        t = trainer.global_step
        assert isinstance(pl_module, Tiny)
        if self.during:
            self.during(t, Run(pl_module, self.lawa.averager))
        if t == self.save_at:
            trainer.save_checkpoint(self.file)


def adapter(module: type[Module], devices: int, strategy: Callable[[], str | Strategy]) -> Adapter:
    def run(
        settings: dict[str, Any], folder: Path, *,
        save_at: int | None = None, resume: bool = False, during: During | None = None,
    ) -> Run:  # fmt: skip
        lawa, file, model = LawaCallback(**settings), folder / "checkpoint.ckpt", module()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Lightning's advice about loaders and workers
            trainer = pl.Trainer(
                accelerator="cpu", devices=devices, strategy=strategy(), max_steps=LAST,
                callbacks=[Users(lawa, file, save_at, during), lawa], val_check_interval=2, logger=False,
                enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                num_sanity_val_steps=0, use_distributed_sampler=False,
            )  # fmt: skip
            loader, held_out = DataLoader(range(100)), DataLoader(range(2))  # type: ignore[arg-type]
            trainer.fit(model, loader, held_out, ckpt_path=str(file) if resume else None)
        return Run(model, lawa.averager)

    return run


ADAPTERS: dict[str, Adapter] = {
    "Lightning": adapter(Module, 1, lambda: "auto"),
    "Lightning DDP": adapter(Module, 2, lambda: "ddp"),
    "Lightning FSDP2": adapter(Sharded, 2, lambda: ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)),
}
