"""DeepSpeed's ZeRO on gloo ranks: each has the same batch, and the mean of two equal gradients is exact."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn

import twins
from contracts.contract import LAST, Adapter, During, Run, Tiny, Weights, batch, optimizer_of
from lawa import WeightAverager
from lawa.averaging.matching import canonical
from lawa.checkpoints.averager_state import AveragerState
from lawa.integrations.deepspeed import attach

os.environ.setdefault("DS_ACCELERATOR", "cpu")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch's own, which DeepSpeed's imports meet
    import deepspeed
logging.getLogger("DeepSpeed").setLevel(logging.ERROR)


def engine_of(
    model: nn.Module, stage: int, optimizer: torch.optim.Optimizer | None = None, *,
    zero: dict[str, Any] | None = None, accumulate: int = 1, **config: Any,
) -> Any:  # fmt: skip
    """A DeepSpeed engine for the CPU; `zero` goes to its "zero_optimization"."""
    for deprecated in ("all_gather_into_tensor", "reduce_scatter_tensor"):  # by torch 2.13; DeepSpeed calls them
        warnings.filterwarnings("ignore", f"`torch.distributed.{deprecated}` is deprecated", FutureWarning)
    settings = {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": accumulate,
        "gradient_clipping": 0.0,  # by default DeepSpeed clips to a norm of 1
        "steps_per_print": 10**9,
        "zero_optimization": {"stage": stage, "reduce_bucket_size": 1000, **(zero or {})},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        **config,
    }
    optimizer = optimizer or optimizer_of(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports more
        return deepspeed.initialize(model=model, optimizer=optimizer, config=settings)[0]


def whole(engine: Any) -> Weights:
    """All parameters of an engine, as training computes with them (collective in ZeRO-3)."""
    parameters = dict(engine.module.named_parameters())
    if not any(hasattr(parameter, "ds_id") for parameter in parameters.values()):
        return {name: twins.array(parameter) for name, parameter in parameters.items()}
    found = {}
    for name, parameter in parameters.items():
        gathered: Any = [] if parameter.numel() else [parameter]  # one that is there stays: training computes with it
        with deepspeed.zero.GatheredParameters(gathered):
            found[name] = twins.array(parameter)
    return found


def assembled(fragments: dict[str, Tensor]) -> Weights:
    """{NAME[START:STOP]: elements} of all ranks as {NAME: flat values}; every element is there once (collective)."""
    everyones: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(everyones, {name: twins.array(part) for name, part in fragments.items()})
    found: dict[str, dict[int, np.ndarray]] = {}
    for name, part in (item for one in everyones for item in one.items()):
        own, _, run = name.partition("[")
        start, stop = map(int, run.rstrip("]").split(":"))
        if stop > start:
            assert len(part) == stop - start
            there = found.setdefault(own, {}).setdefault(start, part)
            assert twins.same_bits(there, part), f"{name} is not the same on two ranks"
    for own, parts in found.items():
        ends = [start + len(parts[start]) for start in sorted(parts)]
        assert sorted(parts) == [0, *ends[:-1]], f"{own} has a gap, or elements twice: {sorted(parts)}"
    return {own: np.concatenate([parts[start] for start in sorted(parts)]) for own, parts in found.items()}


class ZeroRun(Run):
    def snapshots(self) -> dict[int, Weights]:
        shapes = {canonical(name): value.shape for name, value in self.read(self.averager.model).items()}
        return {
            int(step): {name: values.reshape(shapes[name]) for name, values in assembled(snapshot).items()}
            for step, snapshot in self.averager.state_dict()["snapshots"].items()
        }


def adapter(stage: int, *, halves: bool = False, **config: Any) -> Adapter:
    """halves  capture after the step, replace when the next update begins: so checkpoints have a pending replacement"""

    def run(
        settings: dict[str, Any], folder: Path, *,
        save_at: int | None = None, resume: bool = False, during: During | None = None,
    ) -> Run:  # fmt: skip
        model = Tiny()
        engine = engine_of(model, stage, **config)
        averager = WeightAverager(engine, **settings)
        attachment = None if halves else attach(engine, averager)
        state = AveragerState(averager)
        run = ZeroRun(model, averager, lambda _: whole(engine))
        if resume:
            engine.load_checkpoint(str(folder))
            if halves:
                state.load(folder / "last" / "lawa")
        for t in range(engine.global_steps + 1, LAST + 1):
            averager.replace_if_due()
            now = whole(engine)
            model.read = lambda _, now=now: now
            engine.backward(engine(batch(t))["loss"])
            engine.step()
            if halves:
                averager.capture(engine.global_steps)
            if during:
                during(t, run)
            if t == save_at:
                engine.save_checkpoint(str(folder), "last")
                if halves:
                    state.save(folder / "last" / "lawa")
        averager.replace_if_due()
        if attachment:
            attachment.remove()
        return run

    return run


PREFETCHED = {"stage3_param_persistence_threshold": 5, "stage3_prefetch_bucket_size": 100}

ADAPTERS: dict[str, Adapter] = {
    "ZeRO-1": adapter(1),
    "ZeRO-2": adapter(2, halves=True),
    "ZeRO-3": adapter(3, halves=True, zero=PREFETCHED),
}
