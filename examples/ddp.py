"""The latest weights averaged under DDP, and training that goes on from their average (mode "replace").

    torchrun --standalone --nproc-per-node 2 examples/ddp.py

On a CPU in seconds; on GPUs, "nccl" for "gloo" and the model on its device.
"""

import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lawa import AveragerState, WeightAverager


def main() -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    following = torch.randint(0, 64, (64, 4))  # a language: each token is followed by one of four

    def made(mode: str) -> tuple[nn.Module, torch.optim.Optimizer, WeightAverager]:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Embedding(64, 32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 64))
        model = DistributedDataParallel(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
        return model, optimizer, WeightAverager(model, optimizer, mode=mode, every=10, window=4)

    def loss(model: nn.Module, seed: int) -> torch.Tensor:
        draw = torch.Generator().manual_seed(seed)
        tokens = torch.randint(0, 64, (32,), generator=draw)
        return nn.functional.cross_entropy(model(tokens), following[tokens, torch.randint(0, 4, (32,), generator=draw)])

    @torch.no_grad()
    def held_out(model: nn.Module) -> float:
        return torch.stack([loss(model, -n) for n in range(1, 33)]).mean().item()

    for mode in ("evaluate", "replace"):
        model, optimizer, averager = made(mode)
        for t in range(1, 201):
            loss(model, t * world + rank).backward()
            optimizer.step()
            optimizer.zero_grad()
            averager.update()  # every rank captures, and makes the same average
        plain = held_out(model)
        with averager.averaged():
            average = held_out(model)
        if rank == 0:
            print(f"{mode}: held-out loss {plain:.4f}, of the average of {averager.steps()}: {average:.4f}")

    place = [Path(tempfile.mkdtemp())]
    dist.broadcast_object_list(place)
    state = AveragerState(averager)  # one for the whole run: it links what it has written
    state.save(place[0] / "lawa")  # beside your checkpoint; every rank calls
    _, _, resumed = made("replace")
    AveragerState(resumed).load(place[0] / "lawa")
    if rank == 0:
        print(f"resumed at update {resumed.step} with the snapshots of {resumed.steps()}")
    dist.barrier()


if __name__ == "__main__":
    dist.init_process_group("gloo")
    main()  # when it returns nothing holds on to the group
    dist.destroy_process_group()
