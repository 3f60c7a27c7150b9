"""Ours and the peers' averages of one model's weights, each as its own documentation says to use it.

Every one takes a copy at its first update, and follows from the second on; what it does then is `does`. All keep
their state on the model's device. Peers are imported where they are made, so that a
process that measures one of them carries no other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from lawa import EMA, RunningMean, WeightAverager, Window

WINDOW = 10


@dataclass(frozen=True)
class Made:
    """An average of one model.

    update   after each optimizer step
    average  the average, tensor by tensor in the order of the model's parameters, as the model would have it
    """

    update: Callable[[], object]
    average: Callable[[], list[Tensor]]


@dataclass(frozen=True)
class Averager:
    """One way to average.

    kind  what its average should be: an "ema", the "mean" of all readings, the "window" of the last WINDOW
    name  with the version of the package that it is from
    does  what an update does, exactly; without another word the state has the model's dtype
    make  (model, β) → Made
    """

    kind: str
    name: str
    does: str
    make: Callable[[Any, float], Made]


def tensors(parameters: Iterable[Tensor]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


def lawa(make: Callable[[float], Window | EMA | RunningMean]) -> Callable[[nn.Module, float], Made]:
    def made(model: nn.Module, beta: float) -> Made:
        averager = WeightAverager(model, mode="evaluate", averages={"average": make(beta)})

        def average() -> list[Tensor]:
            with averager.averaged():
                return tensors(model.parameters())

        return Made(averager.update, average)

    return made


def averaged_model(multi_avg_fn: Callable[[float], Any]) -> Callable[[nn.Module, float], Made]:
    def made(model: nn.Module, beta: float) -> Made:
        average = AveragedModel(model, multi_avg_fn=multi_avg_fn(beta))
        return Made(lambda: average.update_parameters(model), lambda: tensors(average.module.parameters()))

    return made


def lightning(model: nn.Module, beta: float) -> Made:
    """The real callback, called as Lightning's loop calls it after a step; of the trainer it asks `global_step`."""
    from lightning.pytorch import LightningModule
    from lightning.pytorch.callbacks import EMAWeightAveraging

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

    trainer: Any = SimpleNamespace(global_step=0)
    module, callback = Module(), EMAWeightAveraging(decay=beta)
    callback.setup(trainer, module, "fit")
    average = callback._average_model
    assert average is not None

    def update() -> None:
        trainer.global_step += 1
        callback.on_train_batch_end(trainer, module, None, None, 0)

    return Made(update, lambda: tensors(average.module.parameters()))


def ema_pytorch(*, use_foreach: bool) -> Callable[[nn.Module, float], Made]:
    def made(model: nn.Module, beta: float) -> Made:
        from ema_pytorch import EMA as TheirEMA

        ema = TheirEMA(
            model, beta=beta, min_value=beta, update_every=1, update_after_step=0,
            include_online_model=False, use_foreach=use_foreach,
        )  # fmt: skip
        return Made(ema.update, lambda: tensors(ema.ema_model.parameters()))  # type: ignore[union-attr]

    return made


def diffusers(*, foreach: bool) -> Callable[[nn.Module, float], Made]:
    def made(model: nn.Module, beta: float) -> Made:
        from diffusers.training_utils import EMAModel

        ema = EMAModel(model.parameters(), decay=beta, min_decay=beta, foreach=foreach)
        return Made(lambda: ema.step(model.parameters()), lambda: tensors(ema.shadow_params))

    return made


def trl(model: Any, beta: float) -> Made:
    """The real callback, called as transformers' Trainer calls it; of the state it asks `global_step`.

    Its powers are such that β stays where it is and the correction of the bias is 0 · (θ − θ_0), computed all the same.
    """
    from trl import BEMACallback

    callback = BEMACallback(
        update_freq=1, update_after=1, ema_power=math.inf, bias_power=math.inf, min_ema_multiplier=1 - beta
    )
    state: Any = SimpleNamespace(global_step=0)
    nothing: Any = None
    callback.on_train_begin(nothing, state, nothing, model)

    def update() -> None:
        state.global_step += 1
        callback.on_step_end(nothing, state, nothing, model)

    assert isinstance(callback.running_model, nn.Module)
    running = callback.running_model
    return Made(update, lambda: tensors(running.parameters()))


def _of(package: str, name: str) -> str:
    return f"{package} {version(package).partition('+')[0]} {name}"


OURS = {
    "ema": Averager("ema", "our EMA", "e + (1 − β)(θ − e), one pass, fp32 state", lawa(lambda beta: EMA(beta))),
    "mean": Averager("mean", "our RunningMean", "a + θ, one pass, fp32 state", lawa(lambda beta: RunningMean())),
    "window": Averager(
        "window", f"our Window({WINDOW}, every=1)", "a copy; averaged when asked for, in fp32",
        lawa(lambda beta: Window(WINDOW, every=1)),
    ),
}  # fmt: skip
PEERS = {
    "torch-mean": Averager(
        "mean", _of("torch", "AveragedModel"), "a + (θ − a)/(n + 1), on a CPU tensor by tensor",
        averaged_model(lambda beta: None),
    ),
    "torch-swa": Averager(
        "mean", _of("torch", "AveragedModel, get_swa_multi_avg_fn"), "foreach lerp",
        averaged_model(lambda beta: get_swa_multi_avg_fn()),
    ),
    "torch-ema": Averager(
        "ema", _of("torch", "AveragedModel, get_ema_multi_avg_fn"), "foreach lerp",
        averaged_model(get_ema_multi_avg_fn),
    ),
    "lightning": Averager(
        "ema", _of("lightning", "EMAWeightAveraging"), "βe + (1 − β)θ, tensor by tensor", lightning
    ),
    "ema-pytorch": Averager(
        "ema", _of("ema-pytorch", "EMA"), "lerp, tensor by tensor", ema_pytorch(use_foreach=False)
    ),
    "ema-pytorch-foreach": Averager(
        "ema", _of("ema-pytorch", "EMA(use_foreach=True)"), "foreach lerp", ema_pytorch(use_foreach=True)
    ),
    "diffusers": Averager(
        "ema", _of("diffusers", "EMAModel"), "e − (1 − β)(e − θ), tensor by tensor", diffusers(foreach=False)
    ),
    "diffusers-foreach": Averager(
        "ema", _of("diffusers", "EMAModel(foreach=True)"), "the same, two foreach operations", diffusers(foreach=True)
    ),
    "trl": Averager(
        "ema", _of("trl", "BEMACallback(update_freq=1)"), "βe + (1 − β)θ, and corrected for its bias into a third copy",
        trl,
    ),
}  # fmt: skip
ALL = OURS | PEERS
