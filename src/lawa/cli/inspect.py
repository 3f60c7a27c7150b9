"""lawa inspect: what a run, a checkpoint or a repo is, read from files and headers."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lawa.cli.table import show
from lawa.errors import UsageError

SUMMARY = "what a run, a checkpoint or a repo on the hub is, where it stands, what it costs"
DESCRIPTION = """Read a run of lawa train, checkpoints of any format, or a repo on the hub; nothing is changed.

  lawa inspect RUN                   what it is, where it stands, its checkpoints and averages, what its windows cost
  lawa inspect CHECKPOINT            format, tensors, dtypes, bytes, manifest, and of what an average was made
  lawa inspect FOLDER                checkpoints by step: which there are, and the latest one
  lawa inspect ORG/NAME[@REVISION]   the commit, its tensors where their headers can be read, and the steps there are
  lawa inspect CHECKPOINT --tensors  every tensor's name, as lawa average --ignore and --latest have it, dtype and shape

Exit 1 when something is damaged."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="WHAT", type=Path, help="a run, a checkpoint, a folder of them, a repo")
    parser.add_argument(
        "--tensors", action="store_true", help="list every tensor: name, dtype, shape (--json does, too)"
    )
    parser.add_argument("--verify", action="store_true", help="compare SHA-256 digests too: reads every file")
    parser.add_argument("--offline", action="store_true", help="of the hub, only what is in its cache")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")


def run(given: argparse.Namespace) -> int:
    from lawa.pretrain.inspect import inspect
    from lawa.pretrain.inspect_text import damages, lines

    found = inspect(given.path, verify=given.verify, offline=given.offline)
    if given.tensors and found["kind"] == "run":
        raise UsageError(f"{given.path} is a run; name one of its checkpoints to see tensors, as {given.path}/final")
    if given.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        show([*lines(found), *(_tensors(found) if given.tensors else ())])
    damaged = damages(found)
    for sentence in damaged:
        print(f"lawa inspect: {sentence}", file=sys.stderr)
    return 1 if damaged else 0


def _tensors(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Of a checkpoint, a repo, or the latest checkpoint of a folder."""
    for one in found.get("latest", found)["listing"] or ():
        yield "tensor", f"{one['name']}: {one['dtype']} {one['shape']}"
