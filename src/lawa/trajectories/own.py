"""Runs of lawa train as trajectories: their steps, their learning rate, the order of their data. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lawa.checkpoints.find import step_directories
from lawa.pretrain.config import Config, read_yaml
from lawa.pretrain.directory import CHECKPOINTS, CONFIG, STORE
from lawa.records import read_json
from lawa.settings import build
from lawa.trajectories.naming import Naming
from lawa.trajectories.trajectory import Trajectory

_RULE = ("updates", "batch", "lr", "min_lr", "schedule", "warmup", "decay", "horizon", "weight_decay", "decays",
         "beta1", "beta2", "eps", "clip", "precision")  # fmt: skip


def of_run(run: Path) -> Trajectory:
    """Of the directory of a run; its checkpoints are those that are there now."""
    config: Config = build(Config, read_yaml(run / CONFIG))
    folders = step_directories(run / CHECKPOINTS)
    training, every = config.training, config.checkpoints.every
    latest = folders[max(folders)] if folders else None
    return Trajectory(
        name=run.name,
        family="own",
        repo=str(run),
        naming=Naming(pattern="step{step:08}", interval=every),
        interval=every,
        steps=tuple(folders),
        total=training.updates,
        batch=training.batch,
        context=config.data.context,
        vocab_size=_vocabulary(latest, config),
        tokenizer=_tokenizer(latest, run, config),
        weights="float32",
        training=_rule(config),
        data=_data(run, config),
        notes=_notes(config),
        folders=folders,
    )


def _rule(config: Config) -> dict[str, Any]:
    """What of the training is the run's, and not this machine's; a factor on the rate is part of the rate."""
    training = config.training
    told = {name: getattr(training, name) for name in _RULE}
    told |= {name: told[name] * training.lr_scale for name in ("lr", "min_lr")}
    return {name: value for name, value in told.items() if value is not None}


def _data(run: Path, config: Config) -> dict[str, Any]:
    data = config.data
    if data.batches is not None:
        kind, settings = next(iter(data.batches.items()))
        return {"kind": kind, **settings}
    weights = {name: source.weight for name, source in data.sources.items()} or None  # of the store's own, where None
    store = data.store or str(run / STORE)
    return {
        "kind": "run",
        "store": store,
        "seed": config.seed,
        "batch": config.training.batch,
        "context": data.context,
        "weights": weights,
    }


def _vocabulary(latest: Path | None, config: Config) -> int:
    """Of the model; before its first checkpoint what was asked of the tokenizer."""
    shape = latest / "config.json" if latest else None
    return read_json(shape)["vocab_size"] if shape and shape.is_file() else config.data.vocab_size


def _tokenizer(latest: Path | None, run: Path, config: Config) -> str | None:
    store = Path(config.data.store) if config.data.store else run / STORE
    places = [store / "tokenizer", *([latest] if latest else [])]
    there = next((place for place in places if (place / "tokenizer.json").is_file()), None)
    return str(there) if there else config.data.tokenizer


def _notes(config: Config) -> list[str]:
    if not config.training.rewarmup:
        return []
    first = config.training.start + 1
    return [
        f"updates {first} … {config.training.start + config.training.rewarmup} had smaller rates (training.rewarmup)"
    ]
