"""lawa inspect: what a run, a checkpoint, a repo or a trajectory is, read from files and headers."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lawa.cli.table import show
from lawa.errors import UsageError

if TYPE_CHECKING:
    from lawa.trajectories.trajectory import Trajectory

SUMMARY = "what a run, a checkpoint, a repo on the hub or a public training run is, where it stands, what it costs"
DESCRIPTION = """Read a run of lawa train, checkpoints of any format, or a repo on the hub; nothing is changed.

  lawa inspect RUN                   what it is, where it stands, its checkpoints and averages, what its windows cost
  lawa inspect CHECKPOINT            format, tensors, dtypes, bytes, manifest, and of what an average was made
  lawa inspect FOLDER                checkpoints by step: which there are, and the latest one
  lawa inspect ORG/NAME[@REVISION]   the commit, its tensors where their headers can be read, and the steps there are
  lawa inspect CHECKPOINT --tensors  every tensor's name, as lawa average --ignore and --latest have it, dtype and shape

Training runs whose checkpoints are public, by name, or told in a YAML file:

  lawa inspect                             which are known
  lawa inspect pythia-160m                 checkpoints, learning rate, data, optimizer states, what is wrong with it
  lawa inspect pythia-160m --step 72000    its revision, learning rate and tokens there, and which batch is next
  lawa inspect pythia-160m --batch 72000   that batch, counted from 0, as text; also of a RUN, or a YAML file

Exit 1 when something is damaged."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", metavar="WHAT", nargs="?", help="a run, a checkpoint, a folder of them, a repo, a trajectory"
    )
    parser.add_argument(
        "--tensors", action="store_true", help="list every tensor: name, dtype, shape (--json does, too)"
    )
    parser.add_argument("--verify", action="store_true", help="compare SHA-256 digests too: reads every file")
    parser.add_argument("--trajectories", action="store_true", help="list the public training runs that are known")
    parser.add_argument("--step", metavar="N", type=int, help="of a trajectory: what is so at update N")
    parser.add_argument("--batch", metavar="N", type=int, help="of a trajectory: batch N, which follows update N")
    parser.add_argument("--rows", metavar="R", type=int, default=3, help="of --batch: sequences that are shown")
    parser.add_argument("--schedule", metavar="RULE", help="of a trajectory: with another rule of its learning rate")
    parser.add_argument("--offline", action="store_true", help="of the hub, only what is in its cache")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")


def run(given: argparse.Namespace) -> int:
    if given.trajectories or given.path is None:
        return _list(given)
    if (trajectory := _trajectory(given)) is not None:
        return _of_trajectory(given, trajectory)
    from lawa.pretrain.inspect import inspect
    from lawa.pretrain.inspect_text import damages, lines

    found = inspect(Path(given.path), verify=given.verify, offline=given.offline)
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


def _list(given: argparse.Namespace) -> int:
    from lawa.trajectories.inspect import listed

    if given.path is not None:
        raise UsageError(f"--trajectories lists them all; leave out {given.path}, or the option")
    if options := _asked(given):
        raise UsageError(f"{options[0]} is of one thing; name it: lawa inspect WHAT {options[0]} …")
    return _show(listed(), as_json=given.json)


def _trajectory(given: argparse.Namespace) -> Trajectory | None:
    """The one that is meant; None for what lies on disk or on the hub, and is looked at there."""
    path, asked = Path(given.path), _asked(given)
    a_file = path.is_file() and path.suffix in (".yaml", ".yml")
    if not asked and not a_file and (path.exists() or "/" in given.path):
        return None
    from lawa.trajectories import registry

    if asked or a_file or registry.known(given.path) or registry.nearest(given.path):
        return registry.find(given.path)
    return None


def _asked(given: argparse.Namespace) -> list[str]:
    """The options given that only a trajectory has."""
    return [f"--{name}" for name in ("step", "batch", "schedule") if getattr(given, name) is not None]


def _of_trajectory(given: argparse.Namespace, trajectory: Trajectory) -> int:
    from lawa.trajectories.inspect import inspect, inspect_batch

    if unfit := next((name for name in ("tensors", "verify") if getattr(given, name)), None):
        raise UsageError(f"--{unfit} is of checkpoints; name one, as ORG/NAME@REVISION")
    if given.batch is not None and (given.step is not None or given.schedule is not None):
        raise UsageError("--batch shows a batch alone; leave out --step and --schedule")
    if given.batch is not None:
        found = inspect_batch(trajectory, given.batch, rows=given.rows, offline=given.offline)
    else:
        found = inspect(trajectory.scheduled(given.schedule) if given.schedule else trajectory, given.step)
    return _show(found, as_json=given.json)


def _show(found: Mapping[str, Any], *, as_json: bool) -> int:
    from lawa.trajectories.inspect_text import lines

    if as_json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        show(lines(found))
    return 0


def _tensors(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Of a checkpoint, a repo, or the latest checkpoint of a folder."""
    for one in found.get("latest", found)["listing"] or ():
        yield "tensor", f"{one['name']}: {one['dtype']} {one['shape']}"
