"""A run's directory from the outside: start it, go on with it, and say beforehand what it will cost.

RUN/config.yaml  run.json  metrics.jsonl  checkpoints/  averages/  final/
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.table import Table

from lawa.averaging.cost import readable
from lawa.checkpoints.publish import sweep
from lawa.pretrain import checkpoint
from lawa.pretrain.config import Config, read_yaml
from lawa.pretrain.directory import CONFIG, check_new, check_resumable
from lawa.pretrain.loop import Loop
from lawa.pretrain.progress import Progress, tokenizing
from lawa.pretrain.settings import build
from lawa.pretrain.setup import Setup, prepare
from lawa.records import Records, write_json


def start(config: Config, run: Path, *, console: Console | None = None) -> dict[str, float]:
    """Train `config` from scratch in the new directory `run`; the last validation losses by name, in nats."""
    console = console or Console(stderr=True, highlight=False)
    check_new(run)
    run.mkdir(parents=True, exist_ok=True)
    try:
        with tokenizing(console) as progress:
            setup = prepare(config, run, progress=progress)
    except BaseException:
        if not any(run.iterdir()):
            run.rmdir()  # nothing was begun: the same command works again once its cause is mended
        raise
    (run / CONFIG).write_text(yaml.safe_dump(config.to_dict(), sort_keys=False), encoding="utf-8")
    write_json(run / "run.json", _describe(run, setup))
    console.print(table(setup, run))
    return _train(run, setup, console, None)


def resume(run: Path, *, console: Console | None = None) -> dict[str, float]:
    """Go on with the run in `run` from its latest checkpoint, as RUN/config.yaml says."""
    console = console or Console(stderr=True, highlight=False)
    check_resumable(run)
    config: Config = build(Config, read_yaml(run / CONFIG))
    for parent in (run, run / "checkpoints", *(run / "averages").glob("*")):
        sweep(parent)
    update, directory = checkpoint.latest(run)
    setup = prepare(config, run)
    records = Records(run / "metrics.jsonl")
    position = checkpoint.load(run, directory, setup, records)
    described = json.loads((run / "run.json").read_text(encoding="utf-8"))
    described.setdefault("resumed", []).append({"update": update, **checkpoint.provenance()})
    write_json(run / "run.json", described)
    console.print(f"{run}: going on after update {update} of {config.training.updates}")
    return _train(run, setup, console, position)


def table(setup: Setup, run: Path) -> Table:
    """What the run will be, and what it costs in memory and on disk, before it begins."""
    config, store, parameters = setup.config, setup.store, setup.parameters
    tokens = config.training.updates * config.tokens_per_update
    weights = 4 * parameters
    shown = Table(title=str(run), title_justify="left", show_header=False)
    model = config.model.preset or config.model.architecture
    shown.add_row("model", f"{model}, {parameters:,} parameters, {readable(weights)} in fp32")
    shown.add_row(
        "text",
        f"{len(store.train):,} tokens, vocabulary {store.vocab_size:,}; held out {len(store.validation):,} tokens",
    )
    shown.add_row(
        "training",
        f"{config.training.updates:,} updates of {config.tokens_per_update:,} tokens = {tokens:,} "
        f"({tokens / len(store.train):.2f} epochs) on {setup.device}",
    )
    saved = 0
    if setup.averager is None:
        shown.add_row("averaging", "none")
    else:
        replacement = setup.averager.replacement
        for name, average in setup.averager.averages.items():
            replaces = " → replaces the weights" if replacement and name == replacement.name else ""
            shown.add_row("averaging", f"{name}: {average}{replaces}")
        cost = setup.averager.cost()
        saved = cost.disk
        shown.add_row(
            "its memory",
            f"{cost.snapshots} snapshots; {readable(cost.device)} on the device, {readable(cost.host)} on the host, "
            f"{readable(cost.swap)} more while one is in place",
        )
    count = -(-config.training.updates // config.checkpoints.every)
    kept = min(count, config.checkpoints.keep or count)
    adam = 8 * parameters
    shown.add_row(
        "checkpoints",
        f"{kept} of {readable(weights)}; the latest has {readable(adam + saved)} more to go on from "
        f"({readable(saved)} of it for averaging)",
    )
    return shown


def _train(run: Path, setup: Setup, console: Console, position: checkpoint.Position | None) -> dict[str, float]:
    config = setup.config
    progress = Progress(updates=config.training.updates, tokens_per_update=config.tokens_per_update, console=console)
    with progress.running(position.update if position else 0):
        return Loop(run, setup, Records(run / "metrics.jsonl"), progress, position).train()


def _describe(run: Path, setup: Setup) -> dict[str, Any]:
    config, averager = setup.config, setup.averager
    replacement = averager.replacement if averager else None
    return {
        "name": run.name,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seed": config.seed,
        "updates": config.training.updates,
        "tokens_per_update": config.tokens_per_update,
        "mode": config.averaging.mode,
        "replaced_with": replacement.name if replacement else None,
        "after_replace": ("clear" if replacement.cadence.clear else "slide") if replacement else None,
        "strength": replacement.strength if replacement else None,
        "averages": {name: str(average) for name, average in averager.averages.items()} if averager else {},
        "model": {"architecture": setup.model.config.model_type, "parameters": setup.parameters},
        "data": {"digest": setup.store.digest, **setup.store.info["splits"]},
        "threads": torch.get_num_threads(),
        "device": str(setup.device),
        **checkpoint.provenance(),
    }
