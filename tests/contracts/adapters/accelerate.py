"""A loop that Accelerate prepared: save_state and load_state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType
from torch import nn

import twins
from contracts.contract import LAST, Adapter, During, Run, Tiny, Weights, batch, optimizer_of
from lawa.averaging.layout import full
from lawa.averaging.matching import canonical
from lawa.integrations.accelerate import AcceleratedAverager


def accelerator_of(*, fsdp: bool = False) -> Accelerator:
    """A new one. On CPUs Accelerate ignores its FSDP plugin, unless it is told what runs."""
    PartialState._reset_state()
    AcceleratorState._reset_state()
    GradientState._reset_state()
    accelerator = Accelerator(cpu=True)
    if fsdp:
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="no_wrap", state_dict_type="SHARDED_STATE_DICT"
        )
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        AcceleratorState._shared_state["distributed_type"] = DistributedType.FSDP
        AcceleratorState._shared_state["fsdp_plugin"] = plugin
    return accelerator


def unsharded(module: nn.Module) -> Weights:
    """What a batch sees of FSDP2, whose memory numpy must not share: it would be resizable no more."""
    return {canonical(name): twins.array(full(parameter).clone()) for name, parameter in module.named_parameters()}


def adapter(*, halves: bool = False, fsdp: bool = False) -> Adapter:
    """halves: capture, and replace when the next update begins."""

    def run(
        settings: dict[str, Any], folder: Path, *,
        save_at: int | None = None, resume: bool = False, during: During | None = None,
    ) -> Run:  # fmt: skip
        accelerator = accelerator_of(fsdp=fsdp)
        tiny = Tiny()
        if fsdp:
            tiny.read = unsharded
        model, optimizer = accelerator.prepare(tiny, optimizer_of(tiny))
        averager = AcceleratedAverager(accelerator, model, optimizer, **settings)
        if resume:
            accelerator.load_state(str(folder / "state"))
        for t in range(averager.step + 1, LAST + 1):
            with accelerator.accumulate(model):
                averager.replace_if_due()
                accelerator.backward(model(batch(t))["loss"])
                optimizer.step()
                optimizer.zero_grad()
                averager.capture() if halves else averager.update()
            if during:
                during(t, Run(tiny, averager))
            if t == save_at:
                accelerator.save_state(str(folder / "state"))
        averager.replace_if_due()
        return Run(tiny, averager)

    return run


ADAPTERS: dict[str, Adapter] = {
    "Accelerate": adapter(),
    "Accelerate in two halves": adapter(halves=True),
    "Accelerate DDP": adapter(),
    "Accelerate FSDP2": adapter(fsdp=True),
}
