"""A run's directory from the outside: start it, go on with it.

RUN/config.yaml  run.json  metrics.jsonl  checkpoints/  averages/  final/
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console

from lawa.checkpoints.publish import sweep
from lawa.data.store import TokenStore, open_store
from lawa.errors import LawaError
from lawa.pretrain import checkpoint
from lawa.pretrain.config import Config, read_yaml
from lawa.pretrain.directory import CHECKPOINTS, CONFIG, LOCK, alone, check_new, check_one_process, check_resumable
from lawa.pretrain.loop import Loop
from lawa.pretrain.progress import Progress, tokenizing
from lawa.pretrain.settings import build
from lawa.pretrain.setup import Setup, prepare, store_path
from lawa.pretrain.table import table
from lawa.records import Records, write_json


def start(config: Config, run: Path, *, console: Console | None = None) -> dict[str, float]:
    """Train `config` from scratch in the new directory `run`; the last validation losses by name, in nats."""
    console = console or Console(stderr=True, highlight=False)
    check_one_process()
    check_new(run)
    run.mkdir(parents=True, exist_ok=True)
    with alone(run):
        check_new(run)  # again, now that no other process can start one in it
        try:
            with tokenizing(console) as progress:
                setup = prepare(config, run, progress=progress)
        except BaseException:
            if [entry.name for entry in run.iterdir()] == [LOCK]:
                shutil.rmtree(run)  # nothing was begun: the same command works again once its cause is mended
            raise
        (run / CONFIG).write_text(yaml.safe_dump(config.to_dict(), sort_keys=False), encoding="utf-8")
        write_json(run / "run.json", _describe(run, setup))
        console.print(table(setup, run))
        for sentence in config.without_effect():
            _warn(console, sentence)
        return _train(run, setup, console, None)


def resume(run: Path, *, console: Console | None = None) -> dict[str, float]:
    """Go on with the run in `run` from its latest checkpoint, as RUN/config.yaml says. The text is not needed."""
    console = console or Console(stderr=True, highlight=False)
    check_one_process()
    check_resumable(run)
    with alone(run):
        update, directory = check_resumable(run)  # again, now that no other process goes on with it
        config: Config = build(Config, read_yaml(run / CONFIG))
        described = json.loads((run / "run.json").read_text(encoding="utf-8"))
        for parent in (run, run / CHECKPOINTS, *(run / "averages").glob("*")):
            sweep(parent)
        setup = prepare(config, run, store=_same_store(store_path(config, run), described["data"]["digest"]))
        position = checkpoint.load(run, directory, setup, Records(run / "metrics.jsonl"))
        threads = torch.get_num_threads()
        resumed = {"update": update, "threads": threads, **checkpoint.provenance()}
        described.setdefault("resumed", []).append(resumed)
        write_json(run / "run.json", described)
        console.print(f"{run}: going on after update {update} of {config.training.updates}", soft_wrap=True)
        if threads != described["threads"]:
            began = described["threads"]
            _warn(console, f"the run began on {began} threads and goes on on {threads}, which rounds otherwise")
        return _train(run, setup, console, position)


def _same_store(path: Path, digest: str) -> TokenStore:
    """The store at `path`, which must hold the tokens that the run began with."""
    store = open_store(path)
    if store.digest != digest:
        raise LawaError(
            f"{path} holds other tokens than the run began with (digest {store.digest[:12]}…, not {digest[:12]}…); "
            "put its own store back, or start anew"
        )
    return store


def _warn(console: Console, sentence: str) -> None:
    console.print(f"warning: {sentence}", soft_wrap=True, markup=False)


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
