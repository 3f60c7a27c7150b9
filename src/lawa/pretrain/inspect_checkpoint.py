"""What one checkpoint holds, and what a run of ours has beside it. No torch for what such runs write."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lawa.checkpoints import describe, formats, publish
from lawa.checkpoints.carry import PROVENANCE
from lawa.checkpoints.publish import is_published
from lawa.errors import LawaError
from lawa.pretrain.checkpoint.position import State
from lawa.pretrain.directory import TRAINING
from lawa.records import read_json

EXPORT = (
    "its weights are {dtypes}, an export: averages made from it are not the loop's, which are made of the float32 "
    "weights that are trained"
)


def inspect_checkpoint(path: Path, *, verify: bool = False) -> dict[str, Any]:
    """Format, tensors, bytes on disk, manifest and provenance of the checkpoint at `path`, a directory or a file.

    verify  compare SHA-256 digests too, and not only what files there are and how long they are

    Raises LawaError naming the first file that is damaged or missing.
    """
    checked = check(path, verify=verify)
    held = describe.checkpoint(path)
    provenance, config = path / PROVENANCE, path / "config.json"
    exported = [dtype for dtype in held["dtypes"] or () if dtype in ("bfloat16", "float16")]
    return {
        "kind": "checkpoint",
        "path": str(path),
        "model": read_json(config).get("model_type") if config.is_file() else None,
        **held,
        "bytes": bytes_of(path),
        "manifest": checked,
        "training": training_of(path),
        "average": read_json(provenance) if provenance.is_file() else None,
        "export": EXPORT.format(dtypes=" and ".join(exported)) if exported else None,
    }


def format_of(path: Path) -> str | None:
    """As `describe.checkpoint` calls it; None where there are no weights that can be read."""
    try:
        return formats.look(path).name
    except LawaError:
        return None


def check(path: Path, *, verify: bool) -> str:
    """What the manifests of `path` say, in a word; LawaError naming the first file that differs from them."""
    if not is_published(path):
        return "none"
    for directory in (path, path / TRAINING):
        if is_published(directory):
            publish.verify(directory, digests=verify)
    return "digests" if verify else "sizes"


def training_of(path: Path) -> dict[str, Any] | None:
    """What training needs to go on from `path`: the update, the processes that wrote it, and what its windows hold."""
    training = path / TRAINING
    if not is_published(training):
        return None
    state = State.read(training)
    return {
        "update": state.position["update"],
        "processes": state.world,
        "bytes": bytes_of(training),
        "windows": state.windows,
        "readings": state.averaging.get("running", {}),
        "pending": state.averaging.get("pending"),
    }


def bytes_of(*paths: Path) -> int:
    """Bytes of the files in directories; one that is linked at several places counts once."""
    return sum({(stat.st_dev, stat.st_ino): stat.st_size for path in paths for stat in _stats(path)}.values())


def _stats(path: Path) -> Iterator[Any]:
    for entry in (path, *path.rglob("*")):
        try:
            if entry.is_file() and not entry.is_symlink():
                yield entry.stat()
        except FileNotFoundError:  # a run that goes on has removed it
            continue
