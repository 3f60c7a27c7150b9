"""What every rank does in test_sharded.py: tensor parallel, FSDP2 × tensor parallel, and HSDP, on CPU meshes.

LAYOUT=hsdp python -m torch.distributed.run --standalone --nproc-per-node 4 tests/averaging/meshes.py FOLDER CHECK…
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from averaging import toys
from averaging.sharded import (
    AVERAGES,
    LAST,
    NoCollectives,
    inside,
    load_from_others,
    no_collectives,
    run,
    save_for_others,
    wander,
    weights,
)
from launching import run_to_the_end
from lawa import WeightAverager
from lawa.averaging.layout import local
from lawa.checkpoints.save_average import save_average


class Block(nn.Module):
    def __init__(self, inner: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.up = nn.Linear(4, inner)
        self.down = nn.Linear(inner, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Model(nn.Module):
    """Tied. Tensor parallel computes only with sizes that the ranks divide: 12; by data there are uneven shards."""

    def __init__(self, *, rows: int = 12, inner: tuple[int, ...] = (12, 12)) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(rows, 4)
        self.blocks = nn.ModuleList(map(Block, inner))
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, rows, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def loss(model: nn.Module, t: int) -> Tensor:
    """Of 12 tokens, which 2, 3 and 4 ranks share evenly."""
    tokens = torch.randint(0, 12, (4, 13), generator=torch.Generator().manual_seed(t))
    return nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def tensor_parallel(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    plan: dict[str, ParallelStyle] = {
        "embed": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
        "norm": SequenceParallel(),
        "head": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
    }
    for number in range(len(model.blocks)):  # type: ignore[arg-type]
        plan[f"blocks.{number}.norm"] = SequenceParallel()
        plan[f"blocks.{number}.up"] = ColwiseParallel(input_layouts=Shard(1))
        plan[f"blocks.{number}.down"] = RowwiseParallel(output_layouts=Shard(1))
    parallelize_module(model, mesh, plan)
    model.head.weight = model.embed.weight  # type: ignore[union-attr]
    return model


def data_parallel(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    for block in model.blocks:  # type: ignore[union-attr]
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def by_tensors() -> nn.Module:
    return tensor_parallel(Model(), init_device_mesh("cpu", (dist.get_world_size(),)))


def by_data_and_tensors() -> nn.Module:
    """A weight split twice along one dimension: torch's _StridedShard."""
    mesh = init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("data", "tensor"))
    return data_parallel(tensor_parallel(Model(), mesh["tensor"]), mesh["data"])


def by_data_in_groups() -> nn.Module:
    """HSDP: sharded within a group, the same in each."""
    mesh = init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("replicate", "shard"))
    return data_parallel(Model(), mesh)


def by_tensors_unevenly() -> nn.Module:
    """Uneven and empty shards: held, averaged and saved, as torch cannot compute with them."""
    return tensor_parallel(uneven(), init_device_mesh("cpu", (dist.get_world_size(),)))


def uneven() -> Model:
    return Model(rows=13, inner=(6, 5, 1))


def by_data() -> nn.Module:
    return data_parallel(Model(), init_device_mesh("cpu", (dist.get_world_size(),)))


LAYOUTS: dict[str, Callable[[], nn.Module]] = {
    "tp": by_tensors,
    "uneven tp": by_tensors_unevenly,
    "fsdp2 x tp": by_data_and_tensors,
    "hsdp": by_data_in_groups,
    "fsdp2": by_data,
}


def made() -> nn.Module:
    return LAYOUTS[os.environ["LAYOUT"]]()


# ---- the checks


def the_counter_counts() -> None:
    model = made()
    with NoCollectives() as counter:
        loss(model, 1).backward()
    assert counter.seen
    with NoCollectives() as counter:
        weights(model)
    assert any("all_gather" in name for name in counter.seen), counter.seen


def averages_are_those_of_the_whole_model_without_a_collective() -> None:
    """Captured and averaged shard by shard; gathered afterwards, the bits of a model that was never sharded."""
    model, twin = made(), uneven() if os.environ["LAYOUT"] == "uneven tp" else Model()
    averager = WeightAverager(model, mode="evaluate", averages=AVERAGES)
    unsharded = WeightAverager(twin, mode="evaluate", averages=AVERAGES)
    for t in range(1, LAST + 1):
        wander(model, t)
        wander(twin, t)
        with no_collectives():
            averager.update()
        unsharded.update()
        for name in AVERAGES:
            if unsharded.count(name):
                with no_collectives(), averager.averaged(name):
                    pass
                assert toys.same_weights(inside(averager, name), toys.seen_by(unsharded, name)), (name, t)
        assert toys.same_weights(weights(model), toys.weights(twin))
    own = dict(model.named_parameters())
    for snapshot in averager.state_dict()["snapshots"].values():
        for name, tensor in snapshot.items():
            assert isinstance(tensor, DTensor)
            assert tensor.placements == own[name].placements  # type: ignore[attr-defined]
            assert local(tensor).shape == local(own[name]).shape


def replaced_by_the_average() -> None:
    """Gathered, the bits of the twin; the next loss is that of the average, and there is one collective: the flag."""
    model, twin = made(), Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    averager = WeightAverager(model, optimizer, mode="replace", every=1, window=2)
    unsharded = WeightAverager(twin, mode="replace", every=1, window=2)
    for t in range(1, 5):
        loss(model, t).backward()
        optimizer.step()
        optimizer.zero_grad()
        twin.load_state_dict({name: torch.from_numpy(value) for name, value in weights(model).items()}, strict=False)
        with torch.no_grad():
            loss(model, t)
        with no_collectives():
            averager.capture()
        unsharded.capture()
        with NoCollectives() as counter:
            replaced = averager.replace_if_due()
        assert len(counter.seen) == (t >= 2), counter.seen
        assert replaced == unsharded.replace_if_due() == (t >= 2)
        assert toys.same_weights(weights(model), toys.weights(twin)), t
        with torch.no_grad():
            assert torch.allclose(loss(model, t), loss(twin, t), atol=1e-6)


def the_next_loss_is_the_models_own_again() -> None:
    model = made()
    averager = WeightAverager(model, mode="evaluate", every=1, window=2)
    for factor in (1.5, 0.5):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(factor)
        averager.update()
    with torch.no_grad():
        before = loss(model, 9)
        with averager.averaged():
            within = loss(model, 9)
        assert loss(model, 9) == before != within
    loss(model, 9).backward()


def exported_as_one_model(folder: Path) -> None:
    model = made()
    averager = WeightAverager(model, mode="evaluate", every=1, window=2)
    for t in (1, 2):
        wander(model, t)
        averager.update()
    save_average(averager, folder / "average")
    want = inside(averager)
    found = load_file(folder / "average/model.safetensors")
    assert toys.same_weights({name: tensor.numpy() for name, tensor in found.items()}, want)


CHECKS = {
    check.__name__: check
    for check in (
        the_counter_counts,
        averages_are_those_of_the_whole_model_without_a_collective,
        replaced_by_the_average,
        the_next_loss_is_the_models_own_again,
        exported_as_one_model,
    )
}
ALONE = {
    "save_for_others": lambda folder: save_for_others(folder, made()),
    "load_from_others": lambda folder: load_from_others(folder, made()),
}

if __name__ == "__main__":
    run_to_the_end(lambda: run({**CHECKS, **ALONE}))
