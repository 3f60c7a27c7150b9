"""What is there: a run, where it stands and what its windows cost; a checkpoint, a folder of them, a repo on the hub.

From files and headers alone; nothing is changed. No torch but for checkpoints that only torch can read."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import Any

from lawa import records
from lawa.averaging.averages import Window, snapshots_needed
from lawa.checkpoints import describe, hub
from lawa.checkpoints.find import step_directories
from lawa.checkpoints.publish import is_published
from lawa.errors import LawaError, UsageError
from lawa.pretrain.config import read_yaml
from lawa.pretrain.directory import CHECKPOINTS, CONFIG, FINAL, LOCK, way_on
from lawa.pretrain.inspect_checkpoint import bytes_of, check, format_of, inspect_checkpoint, training_of
from lawa.pretrain.sections.averaging import AveragingConfig
from lawa.records import read_json
from lawa.settings import build

RUN = "run.json"
FIELDS = ("name", "started", "seed", "updates", "tokens_per_update", "mode", "replaced_with", "after_replace",
          "averages", "model", "data", "device", "versions", "commit", "machine")  # fmt: skip


def inspect(path: Path, *, verify: bool = False, offline: bool = False) -> dict[str, Any]:
    """What is at `path`, as plain values under "kind": "run", "checkpoint", "trajectory" (a folder of checkpoints) or,
    where there is no such path and it is ORG/NAME or ORG/NAME@REVISION, "repo".

    verify   compare the SHA-256 digest of every published file, and not only its length
    offline  of the hub, only what is in its cache

    Raises UsageError for what is not there, LawaError for files that cannot be read. A damaged checkpoint of a run does
    not raise: its "damage" says what is wrong.
    """
    if not path.exists():
        if repo := hub.parse(str(path)):
            return describe.repo(repo, offline=offline)
        raise UsageError(f"{path} does not exist; give a run of lawa train, a checkpoint, or ORG/NAME on the hub")
    if path.name.startswith(".") and path.name.endswith(".partial"):
        raise LawaError(f"{path} was never finished: it is being written, or its writer was stopped; give a whole one")
    if (path / RUN).is_file():
        return _run(path, verify=verify)
    if (path / CONFIG).is_file() or (path / LOCK).is_file():
        raise LawaError(f"{path} is a run that has not begun: it has no {RUN} yet; {way_on(path)}")
    if path.is_dir() and not is_published(path) and (found := describe.folder(path)):
        return found
    return inspect_checkpoint(path, verify=verify)


def _run(run: Path, *, verify: bool) -> dict[str, Any]:
    described = read_json(run / RUN)
    if missing := [field for field in FIELDS if field not in described]:
        raise LawaError(f"{run / RUN} lacks {', '.join(missing)}; it is damaged, or of another version of lawa")

    def published(parent: Path) -> list[dict[str, Any]]:
        return [_published(update, path, verify=verify) for update, path in step_directories(parent).items()]

    checkpoints, final = published(run / CHECKPOINTS), run / FINAL
    return {
        "kind": "run",
        "path": str(run),
        **described,
        "standing": _standing(run, described),
        "windows": _windows(run, described, checkpoints),
        "checkpoints": checkpoints,
        "saved_averages": {folder.name: published(folder) for folder in sorted((run / "averages").glob("*"))},
        "final": _published(described["updates"], final, verify=verify) if is_published(final) else None,
        "unfinished": [str(path) for path in sorted(run.rglob(".*.partial")) if path.is_dir()],
        "bytes": bytes_of(run),
    }


def _standing(run: Path, described: dict[str, Any]) -> dict[str, Any]:
    """The latest of what metrics.jsonl says, and what can be done now."""
    metrics = run / "metrics.jsonl"
    last: dict[str, dict[str, Any]] = {}
    for line in records.read(metrics) if metrics.is_file() else ():
        last[line["kind"]] = line
    saved = step_directories(run / CHECKPOINTS)  # one that a signal asked for has no line
    update = max([0, *(line["update"] for line in last.values()), *saved])
    return {
        "update": update,
        "updates": described["updates"],
        "tokens": update * described["tokens_per_update"],
        "train": last.get("train"),
        "evaluation": last.get("evaluation"),
        "replacement": last.get("replacement"),
        "finished": is_published(run / FINAL),
        "held": _held(run),
        "way_on": way_on(run),
    }


def _windows(run: Path, described: dict[str, Any], checkpoints: list[dict[str, Any]]) -> dict[str, Any]:
    """What the averages hold at the latest checkpoint, and what they take in memory and on disk, in bytes.

    Windows share the snapshots of one update. Bytes are of whole tensors: each of the `split_over` processes of a
    sharded run has its share.
    """
    averaging = _averaging(run)
    moments = averaging.mode == "replace" and averaging.moments == "average"
    weights = 4 * described["model"]["parameters"]
    snapshot = (3 if moments else 1) * weights
    windows = {name: average for name, average in averaging.named.items() if isinstance(average, Window)}
    most = snapshots_needed(list(windows.values()))
    state = next((one["training"] for one in reversed(checkpoints) if one["training"]), None)
    holds = state["windows"] if state else {}
    held = {step for steps in holds.values() for step in steps}
    on_disk = averaging.placement == "disk"
    return {
        "update": state["update"] if state else None,
        "sizes": {name: window.size for name, window in windows.items()},
        "holds": holds,
        "readings": state["readings"] if state else {},
        "placement": averaging.placement,
        "split_over": described["processes"] if described.get("sharding", "none") != "none" else 1,
        "snapshot_bytes": snapshot,
        "held_snapshots": len(held),
        "held_bytes": len(held) * snapshot,
        "snapshots_at_most": most,
        "memory_at_most": (0 if on_disk else most * snapshot) + (len(averaging.named) - len(windows)) * weights,
        "saved_bytes": state["bytes"] if state else 0,
    }


def _averaging(run: Path) -> AveragingConfig:
    try:
        return build(AveragingConfig, read_yaml(run / CONFIG).get("averaging") or {}, "averaging")
    except UsageError as other:
        raise LawaError(f"{run / CONFIG}: {other}") from other


def _published(update: int, path: Path, *, verify: bool) -> dict[str, Any]:
    checked = training = damage = None
    try:
        checked = check(path, verify=verify)
        training = training_of(path)
    except LawaError as damaged:
        damage = str(damaged)
    return {
        "update": update,
        "path": str(path),
        "format": format_of(path),
        "bytes": bytes_of(path),
        "manifest": checked,
        "damage": damage,
        "training": training,
    }


def _held(run: Path) -> bool:
    """Whether a process trains in the run right now: whether it has the lock, which is tried for a moment."""
    if not (run / LOCK).is_file():
        return False
    with (run / LOCK).open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
