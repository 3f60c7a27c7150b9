"""lawa average: of one checkpoint of a sharded run, a Hugging Face model directory."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from lawa.errors import UsageError, require

SUMMARY = "make a Hugging Face model directory of a sharded checkpoint or average"
DESCRIPTION = """Export one checkpoint or average of a sharded run, which torch DCP wrote in shards.

  lawa average RUN/checkpoints/step00001000 --output DIR
  lawa average RUN/averages/lawa/step00001000 --output DIR

The average of one checkpoint is its own weights. Several checkpoints are not averaged by this version."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", nargs="+", type=Path, help="a sharded checkpoint")
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="the new directory")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(given: argparse.Namespace) -> int:
    if len(given.checkpoint) > 1:
        raise UsageError("this version exports one checkpoint and does not average several on disk; name one")
    if given.output.exists():
        raise UsageError(f"{given.output} exists already; choose another --output")
    for module in ("torch", "transformers"):
        require(module, extra="train")
    from lawa.pretrain.export import export

    export(given.checkpoint[0], given.output)
    print(json.dumps({"output": str(given.output)}) if given.json else f"model: {given.output}")
    return 0
