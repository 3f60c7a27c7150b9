"""lawa follow: averages along a released run, or one's own, evaluated at every step."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lawa.cli.table import show
from lawa.cli.values import integers, nbytes

if TYPE_CHECKING:
    from lawa.trajectories.follow import Request

SUMMARY = "averages along a released run, evaluated at every step"
DESCRIPTION = """Evaluate a run's checkpoints and averages of them along it: the paper's own experiment.

  lawa follow pythia-160m --steps 1000:143000:1000 --window 5 --text held-out.txt --output DIR
  lawa follow pythia-1b --steps 1000:143000:1000 --window 5,10 --spacing 1,3 --text STORE --disk-budget 9GB --output DIR
  lawa follow RUN --window 3,5 --text RUN/store --output DIR               a run of lawa train, or a trainer's folder
  lawa report DIR --output REPORT

Each checkpoint is fetched, loaded once, averaged, evaluated, and removed from disk when nothing needs it any more. What
that takes is told first (--dry-run: told alone). The same command goes on where a killed one stopped. A TRAJECTORY is
a registered name (lawa inspect lists them), a YAML file that describes one, a run, a folder of checkpoints by step, or
several checkpoints. DIR/results.json has losses, gains and updates ahead."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trajectory", metavar="TRAJECTORY", nargs="+", help="a name, a YAML file, a run, checkpoints")
    parser.add_argument("--output", metavar="DIR", required=True, help="where the records go")
    parser.add_argument("--steps", metavar="A:B:S", help="A, A+S, … B; A:B, or A,B,…; default: every checkpoint")
    averages = parser.add_argument_group("which averages")
    averages.add_argument("--window", metavar="K[,K…]", type=integers, required=True, help="checkpoints in an average")
    averages.add_argument(
        "--spacing", metavar="S[,S…]", type=integers, default=(1,), help="every S-th step; each with each window"
    )
    averages.add_argument(
        "--coefficients", metavar="C", action="append",
        help="uniform (default), linear, one_minus_sqrt, ema:0.9, decay:cosine, or numbers 0.2,0.8, oldest first; "
        "given again, several",
    )  # fmt: skip
    averages.add_argument("--accumulate", choices=("float32", "float64"), default="float32", help="dtype of the sums")
    text = parser.add_argument_group("how they are evaluated")
    text.add_argument("--text", metavar="FILE|STORE", required=True, help="text, or a token store (its held-out text)")
    text.add_argument("--context", metavar="N", type=int, help="tokens; default: the model's, at most 2048")
    text.add_argument("--limit", metavar="N", type=int, help="so many sequences, spread over the text")
    text.add_argument("--batch", metavar="N", type=int, default=8, help="sequences at a time")
    text.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the model")
    text.add_argument("--device", default="cpu", help="cpu (default), cuda, …")
    takes = parser.add_argument_group("what it may take")
    takes.add_argument("--disk-budget", metavar="SIZE", help="for fetched checkpoints at once, as 50GB")
    takes.add_argument("--host-bytes", metavar="SIZE", help="for snapshots in memory; default: half of the memory")
    takes.add_argument("--engine", choices=("local", "ray"), default="local", help="this process, or a Ray cluster")
    takes.add_argument("--workers", metavar="N", type=int, help="ray: groups of steps at once, each with the budgets")
    takes.add_argument("--address", metavar="ADDRESS", help="ray: of the cluster; default: the one at hand")
    parser.add_argument("--offline", action="store_true", help="of the hub, only what is in its cache")
    parser.add_argument("--allow-bad", action="store_true", help="take checkpoints that are known to be wrong")
    parser.add_argument("--allow-duplicates", action="store_true", help="take checkpoints that equal others")
    parser.add_argument("--dry-run", action="store_true", help="tell what it takes, and do nothing")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")


def run(given: argparse.Namespace) -> int:
    from lawa.trajectories.follow import Following
    from lawa.trajectories.follow_preview import preview, preview_lines, results_lines

    following = Following(_request(given), Path(given.output))
    told = preview(following)
    if given.dry_run:
        following.close()
        if given.json:
            print(json.dumps(told, indent=1, ensure_ascii=False))
        else:
            show(preview_lines(told))
        return 0
    for what, text in preview_lines(told):
        print(f"lawa follow: {what}: {text}", file=sys.stderr)
    found = following.run(_Progress(told["evaluations"]["left"]))
    if given.json:
        print(json.dumps({"output": given.output, "results": found}, indent=1, ensure_ascii=False))
    else:
        show(results_lines(found))
        print(f"\nlawa report {given.output} --output REPORT shows the curves")
    return 0


def _request(given: argparse.Namespace) -> Request:
    from lawa.errors import UsageError
    from lawa.offline.windows import parse_family
    from lawa.trajectories.follow import Request
    from lawa.trajectories.follow_text import Evaluation

    if given.engine == "local" and (given.workers or given.address):
        raise UsageError("--workers and --address belong to --engine ray; add that, or leave them out")
    return Request(
        trajectory=given.trajectory,
        steps=given.steps,
        windows=given.window,
        spacings=given.spacing,
        families=[parse_family(text) for text in given.coefficients or ["uniform"]],
        evaluation=Evaluation(
            text=given.text,
            context=given.context,
            limit=given.limit,
            batch=given.batch,
            dtype=given.dtype,
            device=given.device,
        ),
        accumulate=given.accumulate,
        disk_bytes=nbytes("--disk-budget", given.disk_budget),
        host_bytes=nbytes("--host-bytes", given.host_bytes),
        workers=(given.workers or 2) if given.engine == "ray" else 1,
        address=given.address,
        offline=given.offline,
        allow_bad=given.allow_bad,
        allow_duplicates=given.allow_duplicates,
    )


class _Progress:
    """A line on stderr for each evaluation."""

    def __init__(self, left: int) -> None:
        self.left, self.done = left, 0
        self.plain: dict[int, float | None] = {}

    def __call__(self, line: Mapping[str, Any]) -> None:
        [(name, loss)] = line["losses"].items()
        self.done += 1
        step = line["update"]
        if name == "plain":
            self.plain[step] = loss
        plain = self.plain.get(step)
        gain = f" (gain {plain - loss:+.4f})" if name != "plain" and plain is not None and loss is not None else ""
        shown = "not finite" if loss is None else f"{loss:.4f}"
        print(f"{self.done}/{self.left} step {step}: {name} {shown}{gain}", file=sys.stderr, flush=True)
