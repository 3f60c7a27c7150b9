"""A stand-in with the attributes of torchtitan's trainer, and the order in which its train() does things (b5bcd76).

python -m torch.distributed.run --standalone --nproc-per-node 2 tests/integrations/titan.py FOLDER
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from averaging import toys
from contracts.contract import Weights, batch, optimizer_of, weights
from launching import run_to_the_end

sys.path.append(str(Path(__file__).parents[2] / "examples" / "torchtitan"))
from lawa_averaging import STATE, Averaging

STEPS, SAVED = 8, 5


class Checkpointer:
    """Its states are saved together by DCP, and loaded in place."""

    def __init__(self, folder: Path, states: dict[str, Any], said: list[str]) -> None:
        self.enable = True
        self.states = states
        self._folder, self._said = folder, said

    def save(self, step: int) -> None:
        if step == SAVED:
            self._said.append(f"save {step}")
            dcp.save(dict(self.states), checkpoint_id=self._folder)

    def load(self, averaging: Averaging) -> None:
        states = dict(self.states)
        averaging.before_load(states, str(self._folder))
        dcp.load(states, checkpoint_id=self._folder)

    def maybe_wait_for_staging(self) -> None:
        self._said.append("staged")


class Optimizers(list[torch.optim.Optimizer]):
    """An optimizer for each model part."""


class Trainer:
    def __init__(self, folder: Path, **settings: Any) -> None:
        self.model_parts: list[nn.Module] = [made()]
        self.optimizers = Optimizers([optimizer_of(self.model_parts[0])])
        for parameter in self.model_parts[0].parameters():  # as torchtitan does: a state before the first step
            parameter.grad = torch.zeros_like(parameter)
        self.optimizers[0].param_groups[0]["lr"] = torch.tensor(0.0)
        self.optimizers[0].step()
        self.optimizers[0].zero_grad()
        self.optimizers[0].param_groups[0]["lr"] = 0.05
        self.said: list[str] = []
        self.step = 0
        self.config = SimpleNamespace(training=SimpleNamespace(steps=STEPS))
        self.checkpointer = Checkpointer(
            folder,
            {"model": self.model_parts[0], "optimizer": self.optimizers[0], "train_state": self},
            self.said,
        )
        self.averaging = Averaging(self, **settings)
        self.seen: list[Weights] = []
        self.final: Weights = {}

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]

    def train(self, *, resume: bool = False) -> Trainer:
        if resume:
            self.checkpointer.load(self.averaging)
        while self.step < STEPS:
            self.step += 1
            self.averaging.before_step()
            self.seen.append(weights(self.model_parts[0]))
            self.train_step()
            self.averaging.after_step()
            self.checkpointer.save(self.step)
            self.averaging.validate(lambda name: self.said.append(f"validated {name} at {self.step}"))
        self.final = weights(self.model_parts[0])
        return self

    def train_step(self) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
            nn.functional.cross_entropy(*self.guess()).backward()
        self.optimizers[0].step()
        self.optimizers[0].zero_grad()

    def guess(self) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = batch(self.step)
        return self.model_parts[0](tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()


def made() -> nn.Module:
    """Sharded where there is a process group."""
    model = toys.Tied()
    model.scale.requires_grad = True
    if distributed.is_initialized():
        fully_shard(model, mesh=init_device_mesh("cpu", (distributed.get_world_size(),)))
    return model


def resumes_to_the_same_bits(folder: Path) -> None:
    """Saved with a replacement pending, in the middle of a window."""
    settings: dict[str, Any] = {"mode": "replace", "every": 1, "window": 3}
    straight = Trainer(folder, **settings).train()
    resumed = Trainer(folder, **settings).train(resume=True)
    assert resumed.averaging.averager.steps() == straight.averaging.averager.steps() == [6, 7, 8]
    assert len(resumed.seen) == STEPS - SAVED
    for seen, want in zip([*resumed.seen, resumed.final], [*straight.seen[SAVED:], straight.final], strict=True):
        assert toys.same_weights(seen, want)
    assert STATE in straight.checkpointer.states


def main() -> None:
    distributed.init_process_group("gloo")
    resumes_to_the_same_bits(Path(sys.argv[1]))
    print(f"rank {distributed.get_rank()}: the same bits", flush=True)
    distributed.barrier()


if __name__ == "__main__":
    run_to_the_end(main)
