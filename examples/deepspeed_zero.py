"""LAWA on a DeepSpeed engine: two lines. Takes a few seconds on CPUs, and runs as it is on GPUs.

torchrun --nproc-per-node 2 examples/deepspeed_zero.py 3 OUTPUT     (ZeRO 1, 2 or 3)
"""

import gc
import logging
import sys

import deepspeed
import torch
from torch import nn

from lawa import WeightAverager
from lawa.integrations.deepspeed import attach

VOCABULARY, BATCH = 64, 4
torch.manual_seed(0)
follows = torch.softmax(3 * torch.randn(VOCABULARY, VOCABULARY), dim=1)  # a made-up language: which token follows which


def text(sequences: int, length: int = 32) -> torch.Tensor:
    """Tokens, (sequences, length)."""
    tokens = [torch.randint(VOCABULARY, (sequences,))]
    while len(tokens) < length:
        tokens.append(torch.multinomial(follows[tokens[-1]], 1).squeeze(1))
    return torch.stack(tokens, dim=1)


def loss_of(engine: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(engine(tokens[:, :-1]).float().flatten(0, 1), tokens[:, 1:].flatten())


def main(stage: int, output: str) -> None:
    model = nn.Sequential(nn.Embedding(VOCABULARY, 64), nn.GELU(), nn.Linear(64, VOCABULARY))
    config = {
        "train_micro_batch_size_per_gpu": BATCH,
        "zero_optimization": {"stage": stage},
        "bf16": {"enabled": True},  # the average is made in fp32, of the masters
        "steps_per_print": 10**9,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(model.parameters(), 0.02), config=config)

    averager = WeightAverager(engine, mode="evaluate", every=10, window=10)  # the first line
    attach(engine, averager)  # the second: updates with engine.step(), goes with the engine's checkpoints

    held_out = text(256).to(engine.device)
    torch.manual_seed(1 + engine.global_rank)  # from here on, each rank reads text of its own
    for _ in range(300):
        engine.backward(loss_of(engine, text(BATCH).to(engine.device)))
        engine.step()

    with torch.no_grad():
        plain = loss_of(engine, held_out).item()
        with averager.averaged():  # the engine computes with the average; its own weights come back
            average = loss_of(engine, held_out).item()
            # DeepSpeed's zero_to_fp32 and ds_to_universal make files for other programs of it.
            engine.save_checkpoint(output, "average", save_latest=False)
    engine.save_checkpoint(output, "last")  # with the averager's state in OUTPUT/last/lawa
    if engine.global_rank == 0:
        print(f"update {averager.step}: loss {plain:.4f}, of the average {average:.4f}")


logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
main(int(sys.argv[1]), sys.argv[2])
gc.collect()  # on CPUs, gloo aborts a process that ends with tensors in its threads' hands
torch.distributed.destroy_process_group()
