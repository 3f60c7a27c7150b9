"""From a configuration to what the loop needs: processes, tokens, model, optimizer, averager."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from lawa.averaging.averager import WeightAverager
from lawa.averaging.layout import Layout
from lawa.averaging.placement import Placement
from lawa.averaging.stores import SnapshotStore
from lawa.checkpoints.disk_store import DiskStore
from lawa.data.store import Progress
from lawa.pretrain.checkpoint import sharded, whole
from lawa.pretrain.config import Config
from lawa.pretrain.directory import CHECKPOINTS
from lawa.pretrain.model import Given, given_model, make_model
from lawa.pretrain.optimizer import make_optimizer
from lawa.pretrain.ranks import Ranks
from lawa.pretrain.scaler import LossScaler
from lawa.pretrain.sections.averaging import AveragingConfig
from lawa.pretrain.sections.training import TrainingConfig
from lawa.pretrain.text import Text, open_text

_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(kw_only=True)
class Setup:
    """Everything a run trains with.

    text        its batches and held-out sequences
    model       transformers' own class: what is saved, averaged and evaluated
    module      what training calls: the model, or DDP around it
    autocast    makes the context of a forward pass: arithmetic in bf16 or fp16, or nothing
    scaler      with fp16
    given       where the model comes from, if not from its configuration alone
    """

    config: Config
    ranks: Ranks
    text: Text
    model: PreTrainedModel
    module: nn.Module
    optimizer: torch.optim.Optimizer
    averager: WeightAverager | None
    autocast: Callable[[], AbstractContextManager[object]]
    scaler: LossScaler | None
    given: Given | None

    @property
    def device(self) -> torch.device:
        return self.ranks.device

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())  # of a sharded one, all of it


def prepare(
    config: Config,
    run: Path,
    *,
    ranks: Ranks | None = None,
    text: Text | None = None,
    given: Given | None = None,
    progress: Progress | None = None,
) -> Setup:
    """Build everything from scratch; the same configuration gives the same initial weights and batches anywhere.

    ranks     the processes; default: as the launcher says
    text      what it reads; default: made of the text, or opened after comparing it
    given     where the model comes from; default: as the configuration says
    progress  told while text is tokenized
    """
    transformers_logging.disable_progress_bar()  # of loading and saving: ours is the one to be seen
    training = config.training
    ranks = ranks or Ranks(training)
    given = given or given_model(config.model)
    text = text or open_text(config, run, ranks, progress=progress)
    # Drawn on the CPU, the initial weights are the same ones whatever they are trained on.
    model = make_model(config, text, device=torch.device("cpu"), given=given)
    if not ranks.sharded:
        nn.Module.to(model, ranks.device)
    dtype = _DTYPES[training.precision]
    module = ranks.wrap(model, dtype)
    optimizer = make_optimizer(model, training)
    saved = sharded.SavedWeights if ranks.sharded else partial(whole.SavedWeights, model=model)
    device = ranks.device.type
    return Setup(
        config=config,
        ranks=ranks,
        text=text,
        model=model,
        module=module,
        optimizer=optimizer,
        averager=make_averager(config.averaging, model, optimizer, lambda: saved(run / CHECKPOINTS)),
        autocast=nullcontext if dtype is None else lambda: torch.autocast(device, dtype),
        scaler=_scaler(training, ranks.device),
        given=given,
    )


def make_averager(
    averaging: AveragingConfig,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    saved: Callable[[], Any],
) -> WeightAverager | None:
    """The averager that the configuration describes; None with mode none.

    saved  makes the run's checkpoints as a disk_store.Saved, for placement=disk
    """
    if averaging.mode == "none":
        return None

    def on_disk(layout: Layout) -> SnapshotStore:
        return DiskStore(layout, saved())

    placement: Placement = on_disk if averaging.placement == "disk" else averaging.placement
    return WeightAverager(
        model,
        optimizer,
        mode=averaging.mode,
        averages=averaging.named,
        **averaging.replacing,
        placement=placement,
        accumulate=getattr(torch, averaging.accumulate),
        strict=averaging.strict,
    )


def _scaler(training: TrainingConfig, device: torch.device) -> LossScaler | None:
    if training.precision != "fp16":
        return None
    return LossScaler(
        device,
        initial=training.loss_scale,
        window=training.loss_scale_window,
        hysteresis=training.loss_scale_hysteresis,
        least=training.loss_scale_min,
    )
