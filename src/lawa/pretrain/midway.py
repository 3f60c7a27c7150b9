"""What a run is given that begins in the middle of another: Adam's moments, and windows that are full already."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from lawa.averaging.averager import WeightAverager
from lawa.errors import LawaError
from lawa.pretrain.checkpoint import whole
from lawa.pretrain.model import Given, load_weights
from lawa.pretrain.setup import Setup

_KEYS = ("exp_avg", "exp_avg_sq", "step")


def give(setup: Setup) -> None:
    """Bring a fresh setup, whose model has the weights of training.start, to where that run was."""
    config = setup.config
    if config.model.optimizer is not None:
        _read_optimizer(Path(config.model.optimizer), setup)
    if setup.averager is None:
        return
    if config.averaging.prefill:
        _prefill(setup, setup.averager)
        setup.averager.capture(config.training.start)
    else:
        setup.averager.restart(config.training.start)


@torch.no_grad()
def _prefill(setup: Setup, averager: WeightAverager) -> None:
    own = {name: value.clone() for name, value in setup.model.state_dict().items()}
    for step, folder in setup.config.averaging.prefilled.items():
        given = Given(name=folder, path=Path(folder), weights=True)
        if not given.weight_patterns:
            raise LawaError(f"averaging.prefill: {folder} has no weights (of update {step}); fetch them")
        setup.model.load_state_dict(load_weights(given, setup.model.config).state_dict())
        averager.prefill(step)
    setup.model.load_state_dict(own)


def _read_optimizer(file: Path, setup: Setup) -> None:
    """Checked by name and shape before anything is read."""
    shapes = {name: tuple(p.shape) for name, p in setup.model.named_parameters() if p.requires_grad}
    wanted = {f"{key}.{name}": () if key == "step" else shape for name, shape in shapes.items() for key in _KEYS}
    try:
        with safe_open(file, framework="pt") as tensors:
            there = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118 (it is no mapping)
    except (OSError, SafetensorError) as unreadable:
        raise LawaError(f"model.optimizer={str(file)!r} cannot be read ({unreadable}); fetch or make it anew") from None
    wrong = next((name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name)), None)
    if wrong is not None:
        has, needs = (f"{one[wrong]}" if wrong in one else "nothing" for one in (there, wanted))
        raise LawaError(
            f"model.optimizer={str(file)!r} has {has} of {wrong!r}, and the model needs {needs}; give that of these "
            "weights"
        )
    whole.read_optimizer(file, setup.model, setup.optimizer)
