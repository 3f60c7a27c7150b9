"""lawa evaluate: loss, perplexity and bits per byte of checkpoints and averages; tasks of lm-eval."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lawa.cli.values import integers
from lawa.errors import UsageError

if TYPE_CHECKING:
    from lawa.evaluation.asked import Asked

SUMMARY = "loss, perplexity, bits per byte and lm-eval tasks of checkpoints, or of every window's average along a run"
DESCRIPTION = """Evaluate checkpoints, or averages that are made in memory, on texts and on tasks of lm-eval.

  lawa evaluate RUN --last 3 --text RUN/store                  checkpoints of a run on its held-out text
  lawa evaluate A B --text book.txt --text news.jsonl          text is read with each checkpoint's own tokenizer
  lawa evaluate RUN --window 1,5 --text RUN/store              each checkpoint, and the average of the latest five
  lawa evaluate EleutherAI/pythia-160m@step1000 --tasks lambada_openai,piqa
  lawa evaluate RUN --tasks mine --include-path tasks --output DIR   records; what is there is not done again

A CHECKPOINT is named as `lawa average` takes it: a file or a directory of any format, a run, a folder of checkpoints,
ORG/NAME@REVISION on the hub. A TEXT is a token store (its held-out part), or a text or .jsonl file or a folder of them.
Tasks are run by lm-eval itself, each as if it was named alone."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inputs", metavar="CHECKPOINT", nargs="+", help="checkpoints, folders of them, repos on the hub"
    )
    on = parser.add_argument_group("on what")
    on.add_argument("--text", metavar="TEXT", action="append", default=[], help="a store, a text or .jsonl file, …")
    on.add_argument("--batches", metavar="YAML", action="append", default=[], help="{KIND: {…}} as data.batches has it")
    on.add_argument("--updates", metavar="A:B", help="of --batches: those whose batches are read")
    on.add_argument("--tasks", metavar="TASK[,TASK…]", action="append", default=[], help="of lm-eval")
    on.add_argument("--include-path", metavar="DIR", action="append", default=[], help="with definitions of tasks")
    on.add_argument("--fewshot", metavar="N", type=int, help="examples before each document; default: the task's")
    on.add_argument("--context", metavar="N", type=int, help="tokens a sequence predicts; default: the model's, ≤ 2048")
    on.add_argument("--limit", metavar="N", type=int, help="so many sequences of a text, documents of a task")
    chosen = parser.add_argument_group("which checkpoints of a folder or repo")
    chosen.add_argument("--steps", metavar="A:B:S", help="A, A+S, … B, all of which must be there; A:B, or A,B,…")
    chosen.add_argument("--before", metavar="STEP", type=int, help="those of smaller steps")
    chosen.add_argument("--last", metavar="M", type=int, help="the last M of what is left")
    made = parser.add_argument_group("averages")
    made.add_argument("--window", metavar="K[,K…]", type=integers, help="of the latest K, at every step; 1: itself")
    made.add_argument("--spacing", metavar="S", type=int, default=1, help="of windows: every S-th checkpoint")
    made.add_argument("--coefficients", metavar="C", action="append", help="as lawa average has them; default: uniform")
    made.add_argument("--accumulate", choices=("float32", "float64"), default="float32", help="dtype of the sums")
    made.add_argument("--out-dtype", choices=("float32", "bfloat16", "float16"), help="default: as the latest")
    made.add_argument("--allow-duplicates", action="store_true", help="average inputs with the same content")
    how = parser.add_argument_group("the model")
    how.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="that it computes in"
    )
    how.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, …")
    how.add_argument("--batch", metavar="N", type=int, default=8, help="sequences at a time (default 8)")
    how.add_argument("--config", metavar="FILE", help="config.json, or a model that has it, for checkpoints without")
    how.add_argument("--tokenizer", metavar="DIR", help="for checkpoints without one beside them")
    parser.add_argument(
        "--output", metavar="DIR", type=Path, help="a record of each result; those there are not redone"
    )
    parser.add_argument("--offline", action="store_true", help="of the hub, only what is in its cache")
    parser.add_argument("--json", action="store_true", help="print the records as JSON")


def run(given: argparse.Namespace) -> int:
    asked = _asked(given)
    from lawa.evaluation.run import Evaluating

    work = Evaluating(asked)
    for note in work.notes:
        print(f"lawa evaluate: {note}", file=sys.stderr)
    width = max(len(mean.name) for mean in work.means)
    records = []
    for record in work.run():
        records.append(record)
        for line in () if given.json else _lines(record):
            print(f"{record['name']:<{width}}  {line}", flush=True)
    if given.json:
        print(json.dumps(records, indent=1, ensure_ascii=False))
    return 0


def _lines(record: Mapping[str, Any]) -> Iterator[str]:
    """A line for a text, and one for each task and its metrics."""
    if "score" in record:
        found = record["score"]
        numbers = (("loss", found["loss"], ".4f"), ("perplexity", found["perplexity"], ".4g"),
                   ("bits/byte", found["bits_per_byte"], ".4f"), ("tokens", found["tokens"], ",d"))  # fmt: skip
        told = (f"{name} {'–' if value is None else format(value, form)}" for name, value, form in numbers)
        yield "  ".join([record["on"]["text"], *told])
        return
    from lawa.evaluation.tasks import metrics

    of_task: dict[str, list[str]] = {}
    for task, metric, value, error in metrics(record["results"]):
        numbers = [value] if error is None else [value, error]
        told = " ± ".join(format(one, ".4f" if abs(one) < 1e4 else ".4g") for one in numbers)
        of_task.setdefault(task, []).append(f"{metric} {told}")
    for task, told in of_task.items():
        yield "  ".join([task, *told])


def _asked(given: argparse.Namespace) -> Asked:
    from lawa.checkpoints.select import Selection
    from lawa.evaluation.asked import Asked
    from lawa.offline.windows import Windows, parse_family

    if given.window is None and (given.coefficients or given.spacing != 1 or given.out_dtype):
        raise UsageError("--spacing, --coefficients and --out-dtype are of averages: name their size (--window K)")
    windows = given.window and Windows(
        sizes=given.window,
        spacing=given.spacing,
        rolling=True,
        families=[parse_family(text) for text in given.coefficients or ["uniform"]],
    )
    return Asked(
        inputs=given.inputs,
        selection=Selection(steps=given.steps, last=given.last, before=given.before),
        windows=windows,
        texts=given.text,
        batches=[(file, *_batches(Path(file), given.updates)) for file in given.batches],
        tasks=[task for listed in given.tasks for task in listed.split(",")],
        include=given.include_path,
        context=given.context,
        batch=given.batch,
        limit=given.limit,
        fewshot=given.fewshot,
        dtype=given.dtype,
        device=given.device,
        config=given.config,
        tokenizer=given.tokenizer,
        accumulate=given.accumulate,
        out_dtype=given.out_dtype,
        output=given.output,
        allow_duplicates=given.allow_duplicates,
        offline=given.offline,
    )


def _batches(file: Path, updates: str | None) -> tuple[Any, range]:
    """The batches that a YAML file describes, and the updates that were named."""
    import yaml

    from lawa.data.batches import open_batches

    try:
        first, last = (int(part) for part in (updates or "").split(":"))
    except ValueError:
        raise UsageError(f"--updates {updates or ''} must be A:B, the first and the last update of --batches") from None
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as bad:
        raise UsageError(f"--batches {file} cannot be read ({str(bad).splitlines()[0]})") from None
    return open_batches(values), range(first, last + 1)
