"""What every rank does in test_split_replicas.py: DDP whose ranks share their snapshots, on gloo.

python -m torch.distributed.run --standalone --nproc-per-node 2 tests/averaging/split_replicas.py FOLDER CHECK …
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import lawa
import twins
from averaging import toys
from averaging.sharded import NoCollectives
from launching import run_to_the_end
from lawa import EMA, LawaError, RunningMean, WeightAverager, Window
from lawa.averaging.layout import local
from lawa.averaging.matching import canonical

LAST = 7
AVERAGES: dict[str, Any] = {"w": Window(3, every=1), "ema": EMA(0.7), "mean": RunningMean(start=2)}


def make(model: nn.Module, *, split: bool = True, **settings: Any) -> WeightAverager:
    settings = {"mode": "replace", "averages": AVERAGES, "replace_with": "w", "replace_every": 3, **settings}
    return WeightAverager(model, replicas="split" if split else "whole", **settings)


def start(**settings: Any) -> tuple[nn.Module, WeightAverager]:
    model: nn.Module = toys.Tied()
    if dist.is_initialized():
        model = DistributedDataParallel(model)
    return model, make(model, **settings)


def train(model: nn.Module, averager: WeightAverager, first: int, last: int) -> None:
    for t in range(first, last + 1):
        toys.wander(model, t)
        averager.update()


def ends(model: nn.Module, averager: WeightAverager) -> dict[str, Any]:
    seen = {"model": toys.weights(model), **{name: toys.seen_by(averager, name) for name in AVERAGES}}
    return {what: {canonical(name): values for name, values in one.items()} for what, one in seen.items()}


def the_same(left: dict[str, Any], right: dict[str, Any]) -> None:
    for what in left:
        assert toys.same_weights(left[what], right[what]), what


def split_and_whole_are_the_same(folder: Path) -> None:
    """Weights, averages and replacements, to the bit; on every rank."""
    ended = []
    for settings in ({"split": False}, {}, {"strength": 0.3, "split": False}, {"strength": 0.3}):
        model, averager = start(**settings)
        train(model, averager, 1, LAST)
        ended.append(ends(model, averager))
    the_same(ended[0], ended[1])
    the_same(ended[2], ended[3])
    assert not toys.same_weights(ended[0]["model"], ended[2]["model"])


def buffers_are_refused(folder: Path) -> None:
    """Those of a BatchNorm differ between ranks: each would get another's."""
    with pytest.raises(LawaError, match="cannot average buffers, which differ between ranks"):
        start(buffers="average")


def each_rank_keeps_its_part(folder: Path) -> None:
    model, averager = start()
    train(model, averager, 1, 3)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    for step, snapshot in averager.state_dict()["snapshots"].items():
        for name, tensor in snapshot.items():
            whole = dict(model.module.named_parameters())[name].detach().view(-1)  # type: ignore[union-attr]
            mine = [*whole.chunk(ranks), *[whole[:0]] * ranks][rank]
            assert local(tensor).shape == mine.shape, (step, name)
            assert tensor.shape == whole.shape
    whole_cost = lawa.estimate(model, mode="evaluate", every=1, window=10)
    split_cost = lawa.estimate(model, mode="evaluate", every=1, window=10, replicas="split")
    assert split_cost.host < whole_cost.host


def a_capture_needs_no_collective(folder: Path) -> None:
    model, averager = start()
    with NoCollectives() as counter:
        train(model, averager, 1, 2)
        averager._collection.average("w", dtype=torch.float32)
    assert counter.seen == []
    with NoCollectives() as counter, averager.averaged("w"):
        pass
    if dist.get_world_size() > 1:
        assert len(counter.seen) == 2, "one exchange to show the average, one to bring the weights back"


def one_bad_slice_and_all_skip(folder: Path) -> None:
    model, averager = start()
    train(model, averager, 1, 2)
    with torch.no_grad():
        model.module.inner.weight[-1, -1] = float("nan")  # type: ignore[union-attr]
    averager.update()
    assert averager.last_replacement == 3
    assert not torch.isfinite(model.module.inner.weight).all(), "training keeps its own weights"  # type: ignore[union-attr]
    assert not averager.is_finite("w")


def what_is_sharded_already_is_refused(folder: Path) -> None:
    from averaging import sharded

    with pytest.raises(LawaError, match="is sharded already; leave it out"):
        make(sharded.sharded())


def moments_cannot_be_averaged(folder: Path) -> None:
    model = DistributedDataParallel(toys.Tied())
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(LawaError, match="needs whole snapshots on every rank"):
        WeightAverager(model, optimizer, mode="replace", every=1, window=2, moments="average", replicas="split")
    averager = WeightAverager(model, optimizer, mode="replace", every=1, window=2, moments="reset", replicas="split")
    for t in (1, 2):
        toys.train_step(model, optimizer, t)
        averager.update()
    assert all(not state["exp_avg"].any() for state in optimizer.state.values())


CHECKS = {
    check.__name__: check
    for check in (
        split_and_whole_are_the_same, buffers_are_refused, each_rank_keeps_its_part, a_capture_needs_no_collective,
        one_bad_slice_and_all_skip, what_is_sharded_already_is_refused, moments_cannot_be_averaged,
    )
}  # fmt: skip


def save(folder: Path) -> None:
    """In the middle of a window, with a replacement pending; and where it will end."""
    model, averager = start()
    train(model, averager, 1, 2)
    toys.wander(model, 3)
    averager.capture()
    assert averager.replacement_pending
    weights = model.module.state_dict() if dist.is_initialized() else model.state_dict()  # type: ignore[union-attr]
    dcp.save({"model": weights, "averager": averager}, checkpoint_id=folder / "checkpoint")
    averager.replace_if_due()
    train(model, averager, 4, LAST)
    ended = ends(model, averager)
    if not dist.is_initialized() or dist.get_rank() == 0:
        torch.save(
            {what: {n: torch.from_numpy(v) for n, v in one.items()} for what, one in ended.items()}, folder / "end"
        )


def load(folder: Path) -> None:
    model, averager = start()
    own = model.module if dist.is_initialized() else model
    weights = own.state_dict()  # type: ignore[union-attr]
    averager.prepare_to_load(folder / "checkpoint")
    dcp.load({"model": weights, "averager": averager}, checkpoint_id=folder / "checkpoint")
    own.load_state_dict(weights)  # type: ignore[union-attr]
    assert averager.replacement_pending
    averager.replace_if_due()
    train(model, averager, 4, LAST)
    saved = torch.load(folder / "end", weights_only=True)
    for what, one in ends(model, averager).items():
        for name, values in one.items():
            assert twins.same_bits(values, saved[what][name]), (what, name)


def main() -> None:
    dist.init_process_group("gloo")
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    for name in names:
        check = CHECKS.get(name) or {"save": save, "load": load}[name]
        assert inspect.isfunction(check)
        check(folder)
        sys.stdout.write(f"rank {dist.get_rank()}: {name}\n")
        sys.stdout.flush()
        dist.barrier()


if __name__ == "__main__":
    run_to_the_end(main)
