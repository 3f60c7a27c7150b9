"""The latest weights averaged shard by shard under FSDP2: no rank ever has a whole snapshot.

    torchrun --standalone --nproc-per-node 2 examples/fsdp2.py

On a CPU in seconds; on GPUs, "nccl" for "gloo" and "cuda" for "cpu".
"""

import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, GPT2Config

from lawa import WeightAverager, save_average


def main() -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)  # every rank starts from the same weights
    sizes = {"vocab_size": 64, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 2}
    model = AutoModelForCausalLM.from_config(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    for module in (*model.transformer.h, model):
        fully_shard(module, mesh=init_device_mesh("cpu", (world,)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    averager = WeightAverager(model, optimizer, mode="evaluate", every=10, window=5)  # after fully_shard

    following = torch.randint(0, 64, (64, 4))  # a language: each token is followed by one of four

    def loss(seed: int) -> torch.Tensor:
        draw = torch.Generator().manual_seed(seed)
        tokens = [torch.randint(0, 64, (16,), generator=draw)]
        for _ in range(31):
            tokens.append(following[tokens[-1], torch.randint(0, 4, (16,), generator=draw)])
        return model(input_ids=torch.stack(tokens, 1), labels=torch.stack(tokens, 1)).loss

    @torch.no_grad()
    def held_out() -> float:
        model.eval()
        losses = [loss(-n) for n in range(1, 5)]
        model.train()
        return torch.stack(losses).mean().item()

    for t in range(1, 151):
        loss(t * world + rank).backward()
        optimizer.step()
        optimizer.zero_grad()
        averager.update()  # captures this rank's shards every 10 updates; nothing is sent
        if t % 50 == 0:
            plain = held_out()
            with averager.averaged():
                average = held_out()
            if rank == 0:
                print(f"update {t}: held-out loss {plain:.4f}, of the average of {averager.steps()}: {average:.4f}")

    place = [Path(tempfile.mkdtemp())]
    dist.broadcast_object_list(place)
    dcp.save({"model": model.state_dict(), "averager": averager}, checkpoint_id=place[0] / "checkpoint")
    averager.prepare_to_load(place[0] / "checkpoint")  # in a fresh process, on any number of ranks, before dcp.load
    dcp.load({"model": model.state_dict(), "averager": averager}, checkpoint_id=place[0] / "checkpoint")

    save_average(averager, place[0] / "average")  # one directory for from_pretrained, written shard by shard
    if rank == 0:
        whole = AutoModelForCausalLM.from_pretrained(place[0] / "average")
        print(f"{place[0] / 'average'}: {whole.num_parameters():,} parameters")
    dist.barrier()


if __name__ == "__main__":
    dist.init_process_group("gloo")
    main()  # when it returns nothing holds on to the group
    dist.destroy_process_group()
