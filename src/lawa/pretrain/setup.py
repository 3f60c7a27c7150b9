"""From a configuration to what the loop needs: tokens, model, optimizer, averager."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from lawa.averaging.averager import WeightAverager
from lawa.data import store as token_store
from lawa.data.order import Order, validation_sequences
from lawa.data.store import Progress, TokenStore
from lawa.errors import UsageError
from lawa.pretrain.config import Config
from lawa.pretrain.directory import STORE
from lawa.pretrain.optimizer import make_optimizer
from lawa.pretrain.presets import PRESETS
from lawa.pretrain.sections.averaging import AveragingConfig
from lawa.pretrain.sections.model import ModelConfig

_VOCABULARY_MULTIPLE = 128  # GPT-NeoX's make_vocab_size_divisible_by; it makes 50257 and 50277 into 50304


@dataclass(kw_only=True)
class Setup:
    """Everything a run trains with.

    validation  the held-out sequences, int64 [n, context + 1]
    autocast    makes the context of a forward pass: bf16 arithmetic, or nothing
    """

    config: Config
    device: torch.device
    store: TokenStore
    order: Order
    validation: NDArray[np.int64]
    model: PreTrainedModel
    optimizer: torch.optim.Optimizer
    averager: WeightAverager | None
    autocast: Callable[[], AbstractContextManager[object]]

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())


def store_path(config: Config, run: Path) -> Path:
    return Path(config.data.store) if config.data.store else run / STORE


def prepare(config: Config, run: Path, *, store: TokenStore | None = None, progress: Progress | None = None) -> Setup:
    """Build everything from scratch; the same configuration gives the same initial weights and batches.

    store     the tokens; default: made of the text, or opened after comparing it
    progress  told while text is tokenized
    """
    transformers_logging.disable_progress_bar()  # of loading and saving: ours is the one to be seen
    device = _device(config.training.device)
    store = store or token_store.build_or_open(
        store_path(config, run),
        sources=config.data.train,
        validation=config.data.validation,
        validation_fraction=None if config.data.validation else config.data.validation_fraction,
        tokenizer=config.data.tokenizer,
        vocab_size=None if config.data.tokenizer else config.data.vocab_size,
        seed=config.data.seed,
        progress=progress,
    )
    order = Order(tokens=len(store.train), context=config.data.context, batch=config.training.batch, seed=config.seed)
    torch.manual_seed(config.seed)
    with device:
        model = AutoModelForCausalLM.from_config(model_config(config, store), dtype=torch.float32)
    model.train()
    optimizer = make_optimizer(model, config.training)
    return Setup(
        config=config,
        device=device,
        store=store,
        order=order,
        validation=validation_sequences(store.validation, config.data.context, config.evaluation.sequences),
        model=model,
        optimizer=optimizer,
        averager=make_averager(config.averaging, model, optimizer),
        autocast=lambda: (
            torch.autocast(device.type, torch.bfloat16) if config.training.precision == "bf16" else nullcontext()
        ),
    )


def model_config(config: Config, store: TokenStore) -> Any:
    """transformers' own configuration: the preset, then what the data decides, then the overrides."""
    architecture, shape = _shape(config.model)
    base = AutoConfig.for_model(architecture)
    names = base.attribute_map
    fields: dict[str, Any] = {
        **shape,
        "vocab_size": -(-store.vocab_size // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE,
        names.get("max_position_embeddings", "max_position_embeddings"): config.data.context,
        "bos_token_id": store.end_of_text,
        "eos_token_id": store.end_of_text,
    }
    for name, value in config.model.overrides.items():
        own = names.get(name, name)
        if not hasattr(base, own):
            raise UsageError(f"model.overrides.{name} is no field of transformers' {type(base).__name__}")
        fields[own] = value
    if fields["vocab_size"] < store.vocab_size:
        raise UsageError(
            f"model.overrides.vocab_size={fields['vocab_size']} is less than the tokenizer's {store.vocab_size}"
        )
    return AutoConfig.for_model(architecture, **fields)


def make_averager(
    averaging: AveragingConfig, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> WeightAverager | None:
    """The averager that the configuration describes; None with mode none."""
    if averaging.mode == "none":
        return None
    return WeightAverager(
        model,
        optimizer,
        mode=averaging.mode,
        averages=averaging.named,
        **averaging.replacing,
        placement=averaging.placement,
        accumulate=getattr(torch, averaging.accumulate),
        strict=averaging.strict,
    )


def _shape(model: ModelConfig) -> tuple[str, dict[str, Any]]:
    if model.preset is not None:
        return PRESETS[model.preset]
    assert model.architecture is not None  # ModelConfig checked it
    return model.architecture, {}


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("training.device=cuda, but torch sees no GPU here; use cpu or auto")
    return torch.device(name)
