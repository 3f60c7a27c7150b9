"""lawa branch: go on with a run from one of its released checkpoints, in several arms."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lawa.cli.table import show
from lawa.cli.values import integers, names, nbytes, numbers
from lawa.errors import UsageError, require

SUMMARY = "go on with a run from one of its released checkpoints, with the batches it read next, in several arms"
DESCRIPTION = """Branch a run: its weights, its optimizer state where that is public, the batches it read next.

  lawa branch pythia-160m --step 72000 --updates 2000 --output branch
  lawa branch pythia-160m --step 4000,72000,140000 --updates 2000 --arms plain,replace --lr-scale 1,2,4 --output at3
  lawa branch mine.yaml --step 5000 --updates 500 --output branch
  lawa branch runs/a --step 5000 --updates 500 --output branch

TRAJECTORY is a registered name (lawa inspect lists them), a YAML file of your own, or a run of lawa train. The window
holds the released checkpoints up to and including --step from the beginning, so averages and replacements begin at
once. Arms that do not replace are trained once. --dry-run shows what is fetched and trained. A branch that was killed
goes on with the same command. Each step's report lies beside its arms: OUTPUT/stepN/report."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trajectory", metavar="TRAJECTORY", help="a registered run, a YAML file, or a run's directory")
    parser.add_argument("--step", required=True, type=integers, metavar="S,…", help="checkpoints to branch from")
    parser.add_argument("--updates", required=True, type=int, metavar="U", help="updates of every arm")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="a new directory, or one to go on with"
    )
    arms = parser.add_argument_group("arms")
    arms.add_argument(
        "--arms", type=names, default=("plain", "evaluate", "replace"), metavar="ARM,…",
        help="plain, evaluate, replace (the window slides), clear (it starts anew), or a .yaml file that maps names to "
        "settings (default plain,evaluate,replace)",
    )  # fmt: skip
    arms.add_argument(
        "--lr-scale", type=numbers, default=(1.0,), metavar="X,…", help="factors on the run's own rate (default 1)"
    )
    arms.add_argument("--window", type=int, default=10, metavar="M", help="snapshots an average covers (default 10)")
    arms.add_argument("--every", type=int, metavar="N", help="updates between captures (default: between checkpoints)")
    arms.add_argument(
        "--prefill", default="released", choices=("released", "none"), help="what the window holds at the beginning"
    )
    arms.add_argument(
        "--set", action="append", default=[], metavar="SETTING=VALUE", dest="settings",
        help="a setting of lawa train for all arms, as training.micro_batch=4; may be repeated",
    )  # fmt: skip
    arms.add_argument("--seed", type=int, default=0, help="of what is drawn at random in an update (default 0)")
    state = parser.add_argument_group("where it starts")
    state.add_argument(
        "--optimizer", default="released", choices=("released", "fresh"),
        help="Adam's moments; released (default): where they are public, else fresh ones",
    )  # fmt: skip
    state.add_argument(
        "--rewarmup", type=int, metavar="N",
        help="updates over which the rate rises to its own (default with fresh moments: 100, or a tenth of --updates)",
    )  # fmt: skip
    state.add_argument("--schedule", metavar="NAME", help="another rule of the rate, as neox-2023-cosine")
    text = parser.add_argument_group("what is read")
    text.add_argument(
        "--batches", type=Path, metavar="FILE.yaml",
        help="{KIND: settings} of batches that lie on this machine, in place of the trajectory's own",
    )  # fmt: skip
    text.add_argument(
        "--held-out", type=int, default=64, metavar="N",
        help="evaluate on so many sequences of the batches after the last one that is trained on (default 64)",
    )  # fmt: skip
    text.add_argument("--validation", metavar="STORE", help="evaluate on this token store's validation text instead")
    text.add_argument("--evaluate-every", type=int, metavar="N", help="updates between evaluations")
    hub = parser.add_argument_group("fetching")
    hub.add_argument("--disk-budget", metavar="SIZE", help="checkpoints on disk at once, as 50GB")
    hub.add_argument("--offline", action="store_true", help="of the hub, only what is in its cache")
    hub.add_argument("--allow-bad", action="store_true", help="take checkpoints that are known to be wrong")
    hub.add_argument("--allow-duplicates", action="store_true", help="take checkpoints with equal weights")
    parser.add_argument("--dry-run", action="store_true", help="show the plan, and do nothing")
    parser.add_argument("--json", action="store_true", help="print the plan, or the results, as JSON")


def run(given: argparse.Namespace) -> int:
    for module in ("torch", "transformers", "accelerate", "rich", "yaml"):
        require(module, extra="train")
    require("plotly", extra="report")
    from lawa.trajectories.branch import Branch, Request

    request = Request(
        trajectory=given.trajectory, steps=given.step, updates=given.updates, arms=given.arms,
        lr_scales=given.lr_scale, window=given.window, every=given.every, prefill=given.prefill,
        optimizer=given.optimizer, rewarmup=given.rewarmup, schedule=given.schedule, held_out=given.held_out,
        evaluate_every=given.evaluate_every, validation=given.validation, batches=_batches(given.batches),
        settings=dict(map(_setting, given.settings)), seed=given.seed,
    )  # fmt: skip
    branch = Branch(
        request, given.output, offline=given.offline, allow_bad=given.allow_bad,
        allow_duplicates=given.allow_duplicates, budget=nbytes("--disk-budget", given.disk_budget), say=_say,
    )  # fmt: skip
    if given.dry_run:
        plan = branch.describe()
        if given.json:
            print(json.dumps(plan, indent=1, ensure_ascii=False))
        else:
            show(_plan_lines(plan))
        return 0
    from lawa.report.build import build, table

    summaries = []
    for folders in branch.run():
        report = build(folders, folders[0].parent / "report")
        summaries.append(json.loads(report.summary.read_text(encoding="utf-8")))
        if not given.json:
            print(f"{folders[0].parent.name}\n\n{table(report)}\n\npage: {report.page}\n", flush=True)
    if given.json:
        print(json.dumps(summaries, indent=1, ensure_ascii=False))
    return 0


def _plan_lines(plan: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    from lawa.averaging.cost import readable

    yield "trajectory", f"{plan['trajectory']} ({plan['repo']}), in {plan['precision']}"
    for point in plan["points"]:
        first, last = point["updates"]
        rate = f"{point['lr'][0]:.4g} … {point['lr'][1]:.4g}"
        yield f"step {point['step']}", f"updates {first:,} … {last:,}, {point['tokens']:,} tokens, rate {rate}"
        fresh = f", the rate rises over {point['rewarmup']} updates" if point["rewarmup"] else ""
        yield "optimizer", f"{point['optimizer']} moments{fresh}"
        held = ", ".join(map(str, point["held"])) or "nothing"
        yield "window", f"holds at the beginning {held}"
        checkpoints = point["checkpoints"]
        yield "fetches", f"{len(checkpoints)} checkpoints of {readable(sum(one['bytes'] for one in checkpoints))}"
        for one in point["trainings"]:
            yield "trains", f"{one['name']} ({', '.join(one['arms'])}), {one['lr_scale']:g} × the rate"


def _batches(file: Path | None) -> dict[str, Any] | None:
    if file is None:
        return None
    from lawa.pretrain.config import read_yaml

    return read_yaml(file)


def _setting(text: str) -> tuple[str, Any]:
    path, equals, value = text.partition("=")
    if not equals or "." not in path:
        raise UsageError(f"--set {text!r} is no SETTING=VALUE, as training.micro_batch=4")
    yaml = require("yaml", extra="train")
    try:
        return path, yaml.safe_load(value)
    except yaml.YAMLError:
        raise UsageError(f"--set {text!r}: {value!r} is not a value") from None


def _say(sentence: str) -> None:
    print(f"lawa branch: {sentence}", file=sys.stderr, flush=True)
