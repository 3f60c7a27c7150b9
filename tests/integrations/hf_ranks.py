"""What every rank does in test_transformers.py: DDP through the Trainer, whose averages all ranks share.

torchrun --nproc-per-node 2 tests/integrations/hf_ranks.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from torch import distributed
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from integrations.tiny_hf import QUIET, Notes, checkpoints, mean, model, same, tokenizer, tokens, weights
from launching import run_to_the_end
from lawa.checkpoints.publish import verify
from lawa.errors import LawaError
from lawa.integrations.transformers import LawaCallback, callback


def trainer_of(output: Path, notes: Notes, **changes: Any) -> tuple[Trainer, LawaCallback]:
    saving = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    trainer = Trainer(
        model(), TrainingArguments(str(output), ddp_backend="gloo", **(QUIET | saving | changes)),
        train_dataset=tokens(24), eval_dataset=tokens(8, seed=2), processing_class=tokenizer(), callbacks=[notes],
    )  # fmt: skip
    return trainer, LawaCallback(mode="evaluate", every=1, window=3).attach(trainer)


def a_failure_of_one_is_everyones(trainer: Any, rank: int, folder: Path) -> None:
    """Nobody waits for the one that failed, and the older average is there as before."""
    (folder / "mine").mkdir(parents=True, exist_ok=True)
    with pytest.raises(LawaError, match="mine is there, and no average of LAWA's"):
        trainer.lawa.save_average(folder / "mine")
    trainer.lawa.save_average(folder / "average")

    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    for place, name in ((trainer, "save_model"), (callback, "begin"), (callback, "complete")):
        with pytest.MonkeyPatch.context() as patched:
            if rank == 0:
                patched.setattr(place, name, full)
            with pytest.raises(OSError, match="no space left"):
                trainer.lawa.save_average(folder / "average")
        verify(folder / "average")


def main() -> None:
    folder, notes = Path(sys.argv[1]), Notes()
    best = {"metric_for_best_model": "eval_lawa_loss", "load_best_model_at_end": True, "save_total_limit": 1}
    trainer, _ = trainer_of(folder / "best", notes, **best)
    trainer.train()
    rank, world = distributed.get_rank(), distributed.get_world_size()
    assert world == 2

    step = trainer.state.best_global_step
    assert step is not None
    average = mean([notes.ended[t] for t in (step - 2, step - 1, step)])
    assert same(weights(trainer.model), average)
    directory = folder / f"best/checkpoint-{step}/averages/lawa"
    assert same(weights(AutoModelForCausalLM.from_pretrained(directory)), average)
    assert trainer.evaluate()["eval_loss"] == trainer.state.best_metric
    losses: list[Any] = [None] * world
    distributed.all_gather_object(losses, trainer.state.best_metric)
    assert losses[0] == losses[1]

    a_failure_of_one_is_everyones(trainer, rank, folder / "failing")

    first, whole = trainer_of(folder / "run", notes, eval_strategy="no")
    first.train()
    assert checkpoints(folder / "run") == [1, 2, 3, 4, 5, 6]
    again, resumed = trainer_of(folder / "run", notes, eval_strategy="no")
    again.train(resume_from_checkpoint=str(folder / "run/checkpoint-4"))
    assert resumed.averager.steps() == whole.averager.steps() == [4, 5, 6]
    with resumed.averager.averaged(), whole.averager.averaged():
        assert same(weights(again.model), weights(first.model))
    print(f"rank {rank} is done")


if __name__ == "__main__":
    run_to_the_end(main)
