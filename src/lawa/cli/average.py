"""lawa average: of checkpoints on disk or on the hub, one average or every window along a run."""

from __future__ import annotations

import argparse
import importlib.util
import json
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lawa.cli.table import show
from lawa.cli.values import integers

if TYPE_CHECKING:
    from lawa.offline.average import Averaging, Making
    from lawa.offline.prepare import Asked, Progress

SUMMARY = "average checkpoints of any format, from disk or the hub; every window of a run in one pass"
DESCRIPTION = """Average checkpoints tensor by tensor, each input byte read once, into a Hugging Face model directory.

  lawa average RUN --last 10 --output DIR                       the last ten checkpoints of a run
  lawa average A B C --output DIR                               these, oldest first
  lawa average EleutherAI/pythia-160m --steps 1000:10000:1000 --output DIR
  lawa average EleutherAI/pythia-160m@step1000 ./mine --output DIR
  lawa average RUN --rolling --window 3,5,10 --output DIR       DIR/window3/step00003000, …: every window of the run
  lawa average RUN/checkpoints/step00001000 --output DIR        of one: a sharded checkpoint as a model directory

An INPUT is a checkpoint (a file or a directory: Hugging Face, safetensors, torch.save, torch DCP, DeepSpeed ZeRO,
GPT-NeoX layers), a folder of them by step (a run of lawa train, a trainer's output with checkpoint-N, stepN,
global_stepN, iter_N, ckpt_N.pt), or a repo on the hub: ORG/NAME@REVISION, or ORG/NAME with --steps, --last, --before
(its revisions that tell a step), or ORG/NAME@'stage1-*' (those of that name). What is named one by one keeps its
order; where only single checkpoints are named and steps are selected, they are taken by step."""


_LINE_EVERY = 10  # seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", metavar="INPUT", nargs="+", help="checkpoints, folders of them, repos on the hub")
    parser.add_argument("--output", metavar="DIR", required=True, help="the new directory; of several averages, above")
    chosen = parser.add_argument_group("which checkpoints of a folder or repo")
    chosen.add_argument("--steps", metavar="A:B:S", help="A, A+S, … B, all of which must be there; A:B, or A,B,…")
    chosen.add_argument("--before", metavar="STEP", type=int, help="those of smaller steps")
    chosen.add_argument("--last", metavar="M", type=int, help="the last M of what is left")
    chosen.add_argument("--window", metavar="K[,K…]", type=integers, help="the latest K; several give several averages")
    chosen.add_argument("--spacing", metavar="S", type=int, default=1, help="of windows: every S-th checkpoint")
    chosen.add_argument("--rolling", action="store_true", help="one average for every step with a whole window")
    made = parser.add_argument_group("how they are averaged")
    made.add_argument(
        "--coefficients", metavar="C", action="append",
        help="uniform (default), linear, one_minus_sqrt, ema:0.9, decay:cosine, or numbers 0.2,0.8, oldest first; "
        "given again, several averages",
    )  # fmt: skip
    made.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="of the sums")
    made.add_argument(
        "--out-dtype", choices=("float32", "bfloat16", "float16", "float64"), help="default: as the latest"
    )
    made.add_argument("--ignore", metavar="NAME", action="append", default=[], help="tensors left out (* and ?)")
    made.add_argument("--latest", metavar="NAME", action="append", default=[], help="tensors taken from the latest")
    made.add_argument("--buffers", choices=("drop", "latest"), default="drop", help="causal masks and the like")
    made.add_argument("--ties", choices=("keep", "untie"), default="keep", help="tied tensors: once, or each")
    made.add_argument("--allow-duplicates", action="store_true", help="average inputs with the same content")
    made.add_argument("--allow-non-finite", action="store_true", help="write averages that hold inf or nan")
    written = parser.add_argument_group("what is written")
    written.add_argument("--format", choices=("hf", "dcp"), default="hf", help="a model directory (default), torch DCP")
    written.add_argument("--shard-size", metavar="SIZE", default="5GB", help="the most that a file holds")
    written.add_argument("--overwrite", action="store_true", help="replace outputs, each when its successor is whole")
    written.add_argument("--digest", action="store_true", help="SHA-256 digests of the inputs and of the outputs")
    written.add_argument("--verify", action="store_true", help="read outputs back, compare with the inputs in float64")
    written.add_argument("--push-to-hub", metavar="ORG/NAME", help="upload; several averages, each to its own branch")
    written.add_argument("--private", action="store_true", default=None, help="where that repo is new")
    parser.add_argument("--threads", metavar="N", type=int, help="default: the cores")
    parser.add_argument("--cluster", metavar="ADDRESS", help="work on this Ray cluster (auto: the one at hand)")
    parser.add_argument("--offline", action="store_true", help="of the hub, only what is in its cache")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done; write and fetch nothing")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(given: argparse.Namespace) -> int:
    from lawa.offline.average import Averaging

    with _bars() if sys.stderr.isatty() and importlib.util.find_spec("rich") else _lines() as progress:
        work = Averaging(*_settings(given), dry_run=given.dry_run, progress=progress)
        if given.dry_run:
            return _describe(work, as_json=given.json)
        for note in (*work.prepared.notes, *work.prepared.warnings):
            print(f"lawa average: {note}", file=sys.stderr)
        done = []
        for mean, path in work.run():
            inputs = [work.prepared.found[index].label for index in mean.inputs]
            done.append({"path": str(path), "inputs": inputs, "coefficients": mean.coefficients})
            if not given.json:
                print(f"{path}: average of {len(inputs)}", flush=True)
    if given.json:
        print(json.dumps({"output": given.output, "averages": done}, indent=1, ensure_ascii=False))
    return 0


def _settings(given: argparse.Namespace) -> tuple[Asked, Making]:
    from lawa.checkpoints.select import Selection
    from lawa.offline.average import Making, bytes_of, cluster_at, cores
    from lawa.offline.policy import Policy
    from lawa.offline.prepare import Asked
    from lawa.offline.windows import Windows, parse_family

    families = [parse_family(text) for text in given.coefficients or ["uniform"]]
    asked = Asked(
        inputs=given.inputs,
        output=Path(given.output),
        selection=Selection(steps=given.steps, last=given.last, before=given.before),
        windows=Windows(sizes=given.window, spacing=given.spacing, rolling=given.rolling, families=families),
        policy=Policy(ignore=(*given.ignore,), latest=(*given.latest,), buffers=given.buffers, ties=given.ties),
        accumulate=given.dtype,
        out_dtype=given.out_dtype,
        shard_bytes=bytes_of(given.shard_size),
        overwrite=given.overwrite,
        allow_duplicates=given.allow_duplicates,
        offline=given.offline,
    )
    making = Making(
        threads=cores() if given.threads is None else given.threads,
        format=given.format,
        digest=given.digest,
        verify=given.verify,
        allow_non_finite=given.allow_non_finite,
        push_to_hub=given.push_to_hub,
        private=given.private,
        cluster=cluster_at(given.cluster),
        command=_command(),
    )
    return asked, making


def _command() -> str | None:
    """As it was typed, for provenance."""
    return shlex.join(["lawa", *sys.argv[1:]]) if sys.argv[1:2] == ["average"] else None


def _describe(work: Averaging, *, as_json: bool) -> int:
    from lawa.offline.preview import preview_lines

    told = work.describe()
    if as_json:
        print(json.dumps(told, indent=1, ensure_ascii=False))
    else:
        show(preview_lines(told))
    return 0


@contextmanager
def _lines() -> Iterator[Progress]:
    """A line on stderr every ten seconds."""
    told = time.monotonic()

    def progress(what: str, done: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told > _LINE_EVERY:
            told = time.monotonic()
            print(f"{what}: {done / total:.0%}", file=sys.stderr, flush=True)

    yield progress


@contextmanager
def _bars() -> Iterator[Progress]:
    """A bar for each thing that is done, on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    bars = Bars(*columns, console=Console(stderr=True, highlight=False), transient=True)
    tasks: dict[str, TaskID] = {}

    def progress(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bars.add_task(what, total=total)
        bars.update(tasks[what], completed=done, total=total)

    with bars:
        yield progress
