"""What every rank does in test_sharded.py: averages of FSDP2 models evaluated in the middle of training.

python -m torch.distributed.run --standalone --nproc-per-node 4 tests/averaging/evaluated.py FOLDER CHECK…
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy
from torch.distributed.tensor import distribute_tensor

from averaging import toys
from averaging.sharded import AVERAGES, Model, inside, loss, run, sharded, train, weights, whole
from launching import run_to_the_end
from lawa import WeightAverager

BF16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "resharded": {"reshard_after_forward": True},
    "kept": {"reshard_after_forward": False},
    "bf16": {"mp_policy": BF16},
    "bf16, kept": {"mp_policy": BF16, "reshard_after_forward": False},
    "offloaded": {"offload_policy": CPUOffloadPolicy(pin_memory=False)},
}
WITHOUT_GRADIENTS = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}


class Failed(Exception):
    pass


def settings() -> Iterator[tuple[str, dict[str, Any]]]:
    yield from SETTINGS.items()
    if dist.get_world_size() == 4:  # a whole number of ranks that divides theirs
        yield "resharded to 2", {"reshard_after_forward": 2}


def with_weights(values: dict[str, Any], **more: Any) -> nn.Module:
    """A fresh model, sharded the same way, that never had other weights."""
    model = sharded(**more)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            value = torch.from_numpy(values[name])
            parameter.copy_(distribute_tensor(value, parameter.device_mesh, parameter.placements))
    return model


def looked(model: nn.Module, how: str) -> float:
    with WITHOUT_GRADIENTS[how]():
        return loss(model, 9).item()


def gradients(model: nn.Module) -> dict[str, Any]:
    """Of the next batch, after which none are left."""
    loss(model, 50).backward()
    found = {name: whole(p.grad).numpy() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def the_averages_loss_inside_and_its_own_outside() -> None:
    """Before the first forward, after a forward without gradients, after a backward: the bits of fresh models.

    Without resharding, unsharded weights stay behind, and the average would stay in use or never come into it.
    """
    for called, more in settings():
        model, twin = sharded(**more), Model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
        averager = WeightAverager(model, optimizer, mode="evaluate", averages=AVERAGES)
        unsharded = WeightAverager(twin, mode="evaluate", averages=AVERAGES)
        for t in (1, 2, 3):
            train(model, optimizer, t)
            twin.load_state_dict(
                {name: torch.from_numpy(value) for name, value in weights(model).items()}, strict=False
            )
            averager.update()
            unsharded.update()
        own = with_weights(weights(model), **more)
        for name in ("w", "ema"):
            average = with_weights(toys.seen_by(unsharded, name), **more)
            for how in WITHOUT_GRADIENTS:
                where = called, name, how
                for before in ("nothing", "a forward", "a backward"):
                    if before == "a forward":
                        looked(model, how)
                    if before == "a backward":
                        loss(model, 3).backward()
                        model.zero_grad()
                    with averager.averaged(name):
                        assert looked(model, how) == looked(average, how) != looked(own, how), where
                    assert toys.same_weights(gradients(model), gradients(own)), (where, before)
                    assert looked(model, how) == looked(own, how), (where, before)
        assert toys.same_weights(weights(model), toys.weights(twin))


def an_exception_inside_and_gradients_that_wait() -> None:
    """Evaluated between two of the backwards that make one update, by an evaluation that fails."""
    for called, more in settings():
        model = sharded(**more)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
        averager = WeightAverager(model, optimizer, mode="evaluate", averages=AVERAGES)
        for t in (1, 2):
            train(model, optimizer, t)
            averager.update()
        own = with_weights(weights(model), **more)
        for how in WITHOUT_GRADIENTS:
            for one in (model, own):
                loss(one, 1).backward()
            for fails in (True, False):
                try:
                    with averager.averaged("w"):
                        looked(model, how)
                        if fails:
                            raise Failed
                except Failed:
                    pass
            assert toys.same_weights(gradients(model), gradients(own)), (called, how)
        train(model, optimizer, 3)
        averager.update()
        assert averager.steps("w") == [1, 2, 3]


def a_fresh_model_evaluated_first_of_all() -> None:
    """Nothing has been computed before the average is looked at: FSDP2 sets itself up inside."""
    for called, more in settings():
        model = sharded(**more)
        averager = WeightAverager(model, mode="evaluate", averages=AVERAGES)
        with torch.no_grad():
            averager.update()
            for parameter in model.parameters():
                parameter.mul_(2.0)
            averager.update()
        own, average = with_weights(weights(model), **more), with_weights(inside(averager, "w"), **more)
        with averager.averaged("w"):
            assert looked(model, "no_grad") == looked(average, "no_grad") != looked(own, "no_grad"), called
        assert toys.same_weights(gradients(model), gradients(own)), called


CHECKS = {
    check.__name__: check
    for check in (
        the_averages_loss_inside_and_its_own_outside,
        an_exception_inside_and_gradients_that_wait,
        a_fresh_model_evaluated_first_of_all,
    )
}

if __name__ == "__main__":
    run_to_the_end(lambda: run(CHECKS))
