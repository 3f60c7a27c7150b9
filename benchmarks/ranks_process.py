"""What every process of ranks.py does; torchrun starts it.

ranks_process.py FILE ROUNDS [--quick]
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import models
from lawa import EMA, WeightAverager
from measure import interleave
from ranks import RANKS

WINDOW = 5


def main(file: Path, rounds: int, *, quick: bool) -> None:
    torch.set_num_threads(1)
    store, rank, world = next(dist.rendezvous("env://"))
    dist.init_process_group("gloo", store=dist.PrefixStore("gloo", store), rank=rank, world_size=world)
    meshes = {ranks: DeviceMesh("cpu", list(range(ranks))) for ranks in RANKS}  # made by all, whoever is in it
    sharded = {ranks: shard(mesh, quick=quick) for ranks, mesh in meshes.items() if rank < ranks}
    dist.barrier()
    if rank == 0:
        file.write_text(json.dumps(measured(sharded, rounds)), encoding="utf-8")
        store.set("measured", "")
    store.wait(["measured"], timedelta(hours=1))


def shard(mesh: DeviceMesh, *, quick: bool) -> nn.Module:
    torch.manual_seed(0)
    model: Any = models.tiny() if quick else models.gpt2_small()
    for block in model.transformer.h:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def measured(sharded: dict[int, nn.Module], rounds: int) -> dict[str, Any]:
    """Seconds a call by name and number of ranks, one value a round; bytes, and the shard's share of the weights."""
    contenders: dict[str, Callable[[], object]] = {}
    numbers: dict[int, dict[str, int]] = {}
    for ranks, model in sharded.items():
        window = WeightAverager(model, mode="evaluate", every=1, window=WINDOW)
        ema = WeightAverager(model, mode="evaluate", averages={"ema": EMA(0.999)})
        for _ in range(WINDOW + 1):
            window.update()
            ema.update()
        shards = [local(parameter) for parameter in model.parameters()]
        copies = [torch.randn_like(one) for one in shards]
        contenders |= {
            f"capture {ranks}": window.update,
            f"average {ranks}": lambda window=window: swapped(window),
            f"ema {ranks}": ema.update,
            f"copy {ranks}": lambda copies=copies, shards=shards: torch._foreach_copy_(copies, shards),
        }
        cost = window.cost()
        numbers[ranks] = {"held": cost.host, "swap": cost.swap, "weights": sum(one.nbytes for one in shards)}
    with torch.no_grad():
        seconds = interleave(contenders, rounds=rounds)
    return {
        "size": models.size(sharded[1]),
        "seconds": seconds,
        "bytes": numbers,
        "share": {ranks: its["weights"] / numbers[1]["weights"] for ranks, its in numbers.items()},
    }


def swapped(averager: WeightAverager) -> None:
    with averager.averaged():
        pass


def local(parameter: Tensor) -> Tensor:
    assert isinstance(parameter, DTensor)
    return parameter.to_local().detach()


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), int(sys.argv[2]), quick="--quick" in sys.argv)
        code = 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)  # gloo's threads may hold tensors while Python ends, and then abort it (pytorch#179291)
