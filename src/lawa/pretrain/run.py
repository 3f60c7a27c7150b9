"""A run's directory from the outside: start it, go on with it. Every process of a run calls the same.

RUN/config.yaml  run.json  metrics.jsonl  checkpoints/  averages/  final/
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console

from lawa.checkpoints.publish import is_published, remove, sweep
from lawa.errors import LawaError
from lawa.pretrain import changes, midway
from lawa.pretrain.checkpoint.checkpoints import provenance
from lawa.pretrain.checkpoint.load import check_whole, load
from lawa.pretrain.checkpoint.position import Position
from lawa.pretrain.config import Config, read_yaml
from lawa.pretrain.directory import (
    CHECKPOINTS,
    CONFIG,
    FINAL,
    LOCK,
    alone,
    check_new,
    check_resumable,
    check_run,
    way_on,
)
from lawa.pretrain.loop import Loop
from lawa.pretrain.model import shape_of
from lawa.pretrain.progress import Progress, tokenizing
from lawa.pretrain.ranks import Ranks
from lawa.pretrain.setup import Setup, prepare
from lawa.pretrain.signals import Stop, ignore_sigterm
from lawa.pretrain.table import table
from lawa.pretrain.text import open_again
from lawa.pretrain.trackers import Trackers
from lawa.records import Records, read_json, write_json
from lawa.settings import build, merge


def start(config: Config, run: Path, *, console: Console | None = None) -> dict[str, float]:
    """Train `config` from scratch in the new directory `run`; the last validation losses by name, in nats.

    Raises signals.Stopped when SIGTERM or Ctrl-C stopped it, with a checkpoint.
    """
    with ExitStack() as held:
        ranks = _ranks(config, held)
        console = _console(console, ranks)
        with ranks.main_first():
            if ranks.main:
                check_new(run)
                run.mkdir(parents=True, exist_ok=True)
                held.enter_context(alone(run))
                check_new(run)  # again, now that no other process can start one in it
        try:
            with tokenizing(console) as progress:
                setup = prepare(config, run, ranks=ranks, progress=progress)
            midway.give(setup)
        except BaseException:
            if ranks.main and [entry.name for entry in run.iterdir()] == [LOCK]:
                shutil.rmtree(run)  # nothing was begun: the same command works again once its cause is mended
            raise
        if ranks.main:
            _write_config(run, config)
            write_json(run / "run.json", _describe(run, setup))
        console.print(table(setup, run))
        for sentence in config.without_effect():
            _warn(console, sentence)
        return _train(run, setup, console, Position(update=config.training.start))


def resume(
    run: Path, *, overrides: Mapping[str, Any] | None = None, force: bool = False, console: Console | None = None
) -> dict[str, float]:
    """Go on with the run in `run` from its latest checkpoint, as RUN/config.yaml says. The text is not needed.

    overrides  settings laid over it; one that changes what the run is needs `force`, and is recorded
    """
    check_run(run)
    config: Config = build(Config, merge(read_yaml(run / CONFIG), overrides or {}))
    described = read_json(run / "run.json")
    # Built, so that a setting that a later version has with a default is no change.
    changed = changes.between(build(Config, described["config"]).to_dict(), config.to_dict())
    changes.check(changed, force=force)
    check_resumable(run, updates=config.training.updates)
    with ExitStack() as held:
        ranks = _ranks(config, held)
        console = _console(console, ranks)
        found = None
        with ranks.main_first():
            if ranks.main:
                held.enter_context(alone(run))
                # Again, now that no other process goes on with it.
                found = check_resumable(run, updates=config.training.updates)
                for parent in (run, run / CHECKPOINTS, *(run / "averages").glob("*")):
                    sweep(parent)
                check_whole(run, found[1])
        update, directory = ranks.first(found)
        text = open_again(config, run, described["data"]["digest"])
        setup = prepare(config, run, ranks=ranks, text=text, given=shape_of(directory))
        position = load(run, directory, setup, Records(run / "metrics.jsonl"))
        if ranks.main:
            if is_published(run / FINAL):  # of fewer updates
                remove(run / FINAL)
            _write_config(run, config)
            write_json(run / "run.json", _resumed(described, setup, update, changed))
        console.print(f"{run}: going on after update {update} of {config.training.updates}", soft_wrap=True)
        for what, now in (("threads", torch.get_num_threads()), ("processes", ranks.world)):
            if now != (began := described[what]):
                _warn(console, f"the run began on {began} {what} and goes on on {now}, which rounds otherwise")
        for path, (was, is_) in changed.items():
            console.print(f"{path}: {was} → {is_}", soft_wrap=True, markup=False)
        return _train(run, setup, console, position)


def _ranks(config: Config, held: ExitStack) -> Ranks:
    ranks = Ranks(config.training)
    held.callback(ranks.close)
    return ranks


def _console(console: Console | None, ranks: Ranks) -> Console:
    return (console or Console(stderr=True, highlight=False)) if ranks.main else Console(quiet=True)


def _warn(console: Console, sentence: str) -> None:
    console.print(f"warning: {sentence}", soft_wrap=True, markup=False)


def _train(run: Path, setup: Setup, console: Console, position: Position) -> dict[str, float]:
    config = setup.config
    progress = Progress(updates=config.training.updates, tokens_per_update=config.tokens_per_update, console=console)
    done = position.update
    trackers = Trackers.start(
        setup.ranks.accelerator,
        config,
        run,
        done if done > config.training.start else None,
        warn=lambda text: _warn(console, text),
    )
    stop = Stop()
    loop = Loop(run, setup, Records(run / "metrics.jsonl"), progress, position, trackers=trackers, stop=stop)
    try:
        with _company(run, setup.ranks), progress.running(done), stop.listening():
            return loop.train()
    except KeyboardInterrupt:  # a second Ctrl-C stops at once
        raise
    except BaseException:
        loop.checkpoints.abandon()
        raise
    finally:
        trackers.finish()


@contextmanager
def _company(run: Path, ranks: Ranks) -> Iterator[None]:
    """A sentence where another process of the run has gone."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        lost = ("Connection closed", "Connection reset", "Broken pipe", "Timed out", "NCCL", "gloo", "ProcessGroup")
        if ranks.world == 1 or not any(sign in text for sign in lost):
            raise
        ignore_sigterm()  # which the launcher sends now
        raise LawaError(
            f"rank {ranks.rank} lost another process of the run ({' '.join(text.split())[:120]}); {way_on(run)}"
        ) from error


def _write_config(run: Path, config: Config) -> None:
    partial = run / f".{CONFIG}.partial"
    partial.write_text(yaml.safe_dump(config.to_dict(), sort_keys=False), encoding="utf-8")
    partial.replace(run / CONFIG)


def _resumed(
    described: dict[str, Any], setup: Setup, update: int, changed: Mapping[str, tuple[Any, Any]]
) -> dict[str, Any]:
    resumed = {
        "update": update,
        "threads": torch.get_num_threads(),
        "processes": setup.ranks.world,
        "changed": {path: {"was": was, "is": is_} for path, (was, is_) in changed.items()},
        **provenance(),
    }
    return {
        **described,
        **_settings(setup),
        "resumed": [*described.get("resumed", []), resumed],
    }


def _describe(run: Path, setup: Setup) -> dict[str, Any]:
    return {
        "name": run.name,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **_settings(setup),
        "data": {"digest": setup.text.digest, **setup.text.described},
        "initial": setup.given.provenance() if setup.given else None,
        "threads": torch.get_num_threads(),
        "processes": setup.ranks.world,
        "sharding": setup.config.training.sharding,
        "device": str(setup.device),
        **provenance(),
    }


def _settings(setup: Setup) -> dict[str, Any]:
    """What of run.json follows from the configuration."""
    config, averager = setup.config, setup.averager
    replacement = averager.replacement if averager else None
    return {
        "seed": config.seed,
        "updates": config.training.updates,
        "tokens_per_update": config.tokens_per_update,
        "mode": config.averaging.mode,
        "replaced_with": replacement.name if replacement else None,
        "after_replace": ("clear" if replacement.cadence.clear else "slide") if replacement else None,
        "strength": replacement.strength if replacement else None,
        "averages": {name: str(average) for name, average in averager.averages.items()} if averager else {},
        "model": {"architecture": setup.model.config.model_type, "parameters": setup.parameters},
        "config": config.to_dict(),
    }
