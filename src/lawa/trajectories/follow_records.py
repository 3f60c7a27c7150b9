"""What `lawa follow` leaves in its directory, and how it goes on there. No torch.

DIR/follow.json    the request: trajectory, steps with their commits, averages, text, how it is evaluated
DIR/run.json       the same for `lawa report`: names, tokens an update, model, versions, machine
DIR/metrics.jsonl  a line for each (step, average), as `lawa.records` has evaluations; at the end one of kind end
DIR/results.json   gain and updates ahead of each average at each step, from those lines
DIR/groups/N.jsonl lines of a group of steps that another process works on, until they are in metrics.jsonl
DIR/.lock          held while a process works
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lawa.records import Records, provenance, read, write_json
from lawa.trajectories.ahead import ahead, in_words
from lawa.trajectories.follow_plan import PLAIN, Due

REQUEST, RUN, METRICS, RESULTS, GROUPS = "follow", "run.json", "metrics.jsonl", "results.json", "groups"


class Journal:
    """The lines of one file that only whole ones are in: what a kill left of the last is cut off when it is opened."""

    def __init__(self, file: Path) -> None:
        self.records = Records(file)
        self.lines = list(read(file)) if file.exists() else []
        if file.exists():
            whole = file.read_bytes().rfind(b"\n") + 1
            self.records.cut_back(whole)

    @property
    def done(self) -> set[Due]:
        """The evaluations in it."""
        return {
            (line["update"], name) for line in self.lines if line["kind"] == "evaluation" for name in line["losses"]
        }

    def append(self, line: Mapping[str, Any]) -> None:
        fields = dict(line)
        self.records.append(fields.pop("kind"), fields.pop("update"), **fields)
        self.lines.append(dict(line))


def evaluation(
    step: int, name: str, tokens: int | None, inputs: Sequence[int], found: Mapping[str, Any]
) -> dict[str, Any]:
    """The line of one evaluation.

    found  loss (nats a token), perplexity, bits_per_byte; None where not finite
    """
    more = {key: found[key] for key in ("perplexity", "bits_per_byte")}
    made_of = {} if name == PLAIN else {"snapshots": {name: len(inputs)}, "inputs": [*inputs]}
    return {
        "kind": "evaluation", "update": step, "tokens": tokens, "losses": {name: found["loss"]}, **made_of, **more,
    }  # fmt: skip


def take_in(directory: Path, journal: Journal) -> None:
    """Move what groups have recorded into the journal, and remove their files."""
    folder = directory / GROUPS
    for file in sorted(folder.glob("*.jsonl")) if folder.is_dir() else ():
        known = journal.done
        for line in read(file):
            if not known.issuperset((line["update"], name) for name in line["losses"]):
                journal.append(line)
    shutil.rmtree(folder, ignore_errors=True)


def describe(directory: Path, request: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    """DIR/run.json, which makes it a run that `lawa report` shows."""
    trajectory = request["trajectory"]
    described = {
        "name": trajectory["name"],
        "follows": trajectory,
        "updates": request["steps"][-1],
        "tokens_per_update": trajectory["tokens_per_update"],
        "mode": "evaluate",
        "averages": {name: one["what"] for name, one in request["averages"].items()},
        "model": dict(model),
        "data": request["text"],
        "evaluation": request["evaluation"],
        **provenance(("transformers", "huggingface_hub")),
    }
    write_json(directory / RUN, described)


def results(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each average at each step, as far as recorded: its loss and the run's, gain (nats a token), updates ahead."""
    losses: dict[str, dict[int, float]] = {}
    tokens: dict[int, int | None] = {}
    for line in lines:
        if line["kind"] == "evaluation":
            tokens[line["update"]] = line["tokens"]
            for name, loss in line["losses"].items():
                losses.setdefault(name, {})[line["update"]] = math.nan if loss is None else loss
    plain = losses.pop(PLAIN, {})
    return [
        {
            "step": step, "tokens": tokens[step], "average": name, "plain": _finite(plain[step]), "loss": _finite(loss),
            "gain": _finite(plain[step] - loss), "ahead": ahead(plain, step, loss),
            "in_words": in_words(plain, step, loss),
        }
        for name, curve in losses.items()
        for step, loss in sorted(curve.items())
        if step in plain
    ]  # fmt: skip


def _finite(value: float) -> float | None:
    """JSON has no nan."""
    return value if math.isfinite(value) else None
