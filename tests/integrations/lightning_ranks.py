"""What every rank does in test_lightning.py: FSDP2 from a checkpoint that was saved before averaging began.

python -m torch.distributed.run --standalone --nproc-per-node 2 tests/integrations/lightning_ranks.py FOLDER
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import lightning.pytorch as pl
import pytest
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.utils.data import DataLoader

from contracts.adapters.lightning import Sharded
from launching import run_to_the_end
from lawa.integrations.lightning import LawaCallback


def trainer_of(max_steps: int, *callbacks: pl.Callback) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu", devices=2, strategy=ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
        max_steps=max_steps, callbacks=list(callbacks), logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip


def main() -> None:
    file, loader = Path(sys.argv[1]) / "before.ckpt", DataLoader(range(100))  # type: ignore[arg-type]
    warnings.simplefilter("ignore")  # Lightning's advice about loaders and workers
    before = trainer_of(3)
    before.fit(Sharded(), loader)
    before.save_checkpoint(file)

    lawa = LawaCallback(mode="evaluate", every=1, window=2)
    resumed = trainer_of(6, lawa)
    if resumed.global_rank == 0:
        with pytest.warns(UserWarning, match="no state of LawaCallback; its averages start anew"):
            resumed.fit(Sharded(), loader, ckpt_path=str(file))
    else:
        resumed.fit(Sharded(), loader, ckpt_path=str(file))
    assert lawa.averager.steps() == [5, 6]
    print(f"rank {resumed.global_rank} is done")


if __name__ == "__main__":
    run_to_the_end(main)
