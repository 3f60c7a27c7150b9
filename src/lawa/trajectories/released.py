"""The run's own next checkpoints on the text that a branch's arms are evaluated on, recorded as a run of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import AutoConfig

from lawa.evaluation.loss import evaluate
from lawa.pretrain.config import Config
from lawa.pretrain.model import Given, load_weights
from lawa.records import Records, provenance, read, write_json
from lawa.trajectories.fetch import Fetcher
from lawa.trajectories.trajectory import Trajectory


def evaluate_released(
    trajectory: Trajectory, steps: Sequence[int], config: Config, validation: NDArray[np.int64], fetcher: Fetcher,
    directory: Path, *, keep: Sequence[int] = (),
) -> None:  # fmt: skip
    """Write DIRECTORY/run.json and metrics.jsonl: the loss of each released checkpoint, as `lawa report` shows runs.

    config      of an arm: how it evaluates
    validation  the arms' held-out sequences
    keep        steps whose files stay when they have been evaluated

    What was recorded is not evaluated again.
    """
    directory.mkdir(parents=True, exist_ok=True)
    metrics = directory / "metrics.jsonl"
    lines = list(read(metrics)) if metrics.exists() else []
    if metrics.exists():
        Records(metrics).cut_back(metrics.read_bytes().rfind(b"\n") + 1)
    done = {line["update"] for line in lines if line["kind"] == "evaluation"}
    write_json(
        directory / "run.json",
        {
            "name": f"{trajectory.name} as released",
            "updates": max(steps),
            "tokens_per_update": config.tokens_per_update,
            "mode": "none",
            "averages": {},
            "data": {"of": str(trajectory.repo)},
            "seed": config.seed,
            **provenance(("transformers",)),
        },
    )
    records = Records(metrics)
    for step in steps:
        if step in done:
            continue
        loss = _loss(fetcher.fetch([step])[step], config, validation)
        records.append("evaluation", step, tokens=step * config.tokens_per_update, losses={"plain": loss}, snapshots={})
        if step not in keep:
            fetcher.evict(step)
    if not any(line["kind"] == "end" for line in lines):
        records.append("end", max(steps), tokens=max(steps) * config.tokens_per_update, seconds={})


def _loss(folder: Path, config: Config, validation: NDArray[np.int64]) -> float:
    given = Given(name=str(folder), path=folder, weights=True)
    model = load_weights(given, AutoConfig.from_pretrained(str(folder), trust_remote_code=False))
    device = config.training.device if config.training.device != "auto" else _best()
    nn.Module.to(model, device)
    return evaluate(model, validation, batch=config.evaluation.batch)


def _best() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
