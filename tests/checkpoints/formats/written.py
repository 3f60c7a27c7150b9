"""What two gloo ranks write with the real torch DCP and DeepSpeed; rank 0 saves what is to come back.

    torchrun --nproc-per-node 2 written.py FOLDER fsdp2 | zero0 | zero1 | zero2 | zero3 | half0

FOLDER/checkpoint is what was written, FOLDER/expected.safetensors the whole tensors, by the library's own gathering.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from checkpoints.formats.made import gpt2, llama
from launching import run_to_the_end

TOKENS = torch.arange(12).reshape(2, 6)


def keep(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    if dist.get_rank() == 0:
        save_file({name: tensor.detach().clone() for name, tensor in tensors.items()}, folder / "expected.safetensors")
    dist.barrier()


def fsdp2(folder: Path) -> None:
    """As the script of torch's DCP tutorial does it: model, optimizer and a number, after an update; uneven shards."""
    model: Any = llama()
    for layer in model.model.layers:
        fully_shard(layer, mesh=init_device_mesh("cpu", (2,)))
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    optimizer.step()
    weights, moments = get_state_dict(model, optimizer)
    dcp.save({"app": {"model": weights, "optim": moments}, "step": 3}, checkpoint_id=folder / "checkpoint")
    keep(folder, {name: tensor.full_tensor() for name, tensor in weights.items()})


class Tied(nn.Module):
    """GPT-2, tied, with a frozen parameter and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.gpt = gpt2()
        self.register_buffer("seen", torch.tensor([1.5, 2.0]))
        self.frozen = nn.Parameter(torch.arange(5.0), requires_grad=False)

    def forward(self, tokens: torch.Tensor) -> Any:
        return self.gpt(input_ids=tokens, labels=tokens).loss


def zero(folder: Path, stage: int, half: bool) -> None:
    from contracts.adapters.deepspeed import deepspeed, engine_of

    model = Tied()
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-2)
    engine = engine_of(model, stage, optimizer, bf16={"enabled": half})
    for _ in range(2):
        engine.backward(engine(TOKENS))
        engine.step()
    engine.save_checkpoint(str(folder / "checkpoint"), "global_step2")
    expected = {}
    for name, parameter in engine.module.named_parameters():
        if not stage or (stage == 1 and not parameter.requires_grad):
            expected[name] = parameter
        elif parameter.requires_grad:
            expected[name] = deepspeed.utils.safe_get_full_fp32_param(parameter)
        else:
            with deepspeed.zero.GatheredParameters([parameter] if stage == 3 else []):
                expected[name] = parameter.detach().clone()
    expected["gpt.lm_head.weight"] = expected["gpt.transformer.wte.weight"]
    expected["seen"] = engine.module.seen.float() if stage else engine.module.seen
    keep(folder, expected)


def main() -> None:
    folder, what = Path(sys.argv[1]), sys.argv[2]
    dist.init_process_group("gloo")
    if what == "fsdp2":
        fsdp2(folder)
    else:
        zero(folder, int(what[-1]), half=what != "zero0")


run_to_the_end(main)
