"""What a run writes down: one JSON object a line, cut back to a checkpoint's update on resume.

Every line has `kind` and `update`. The kinds of a training run:

    train        loss (mean since the last line), lr, grad_norm (null: update skipped), loss_scale (fp16), tokens
    evaluation   losses {"plain": …, NAME: …}, snapshots {NAME: count}, tokens
    replacement  name, snapshots, applied, loss (of the replaced weights, where evaluated)
    end          seconds {"training": …, "averaging": …, "evaluation": …, "checkpoints": …}
"""

from __future__ import annotations

import functools
import json
import os
import platform
import subprocess
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from lawa.errors import LawaError


class Records:
    """An append-only JSONL file. Each line is written at once, so a kill loses at most the one in hand."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def append(self, kind: str, update: int, **fields: Any) -> None:
        line = json.dumps({"kind": kind, "update": update, **fields})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def size(self) -> int:
        """The file's bytes so far: what a checkpoint remembers."""
        return self.path.stat().st_size if self.path.exists() else 0

    def to_disk(self) -> None:
        """Bring what was written to disk."""
        with self.path.open("a", encoding="utf-8") as file:
            os.fsync(file.fileno())

    def cut_back(self, size: int) -> None:
        """Drop every line written after the file had `size` bytes."""
        if self.path.exists() and self.path.stat().st_size > size:
            os.truncate(self.path, size)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file at once: a reader sees the old one or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def read_json(file: Path) -> dict[str, Any]:
    """The object in `file`; LawaError where there is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as missing:
        raise LawaError(f"{file} cannot be read ({missing.strerror}); the directory is incomplete") from missing
    except ValueError as bad:
        raise LawaError(f"{file} is not JSON ({bad}); it is damaged") from bad
    if not isinstance(found, dict):
        raise LawaError(f"{file} holds no object; it is damaged")
    return found


def read(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """The records of a file, in order. An unfinished last line is left out; any other bad line is an error."""
    lines = Path(path).read_text(encoding="utf-8").splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or "kind" not in record or "update" not in record:
                raise ValueError("no kind or update")
        except ValueError as bad:
            if number == len(lines) and not line.endswith("\n"):
                return
            raise LawaError(f"{path}, line {number}: not a record ({bad}); remove the line to go on") from bad
        yield record


def provenance(packages: Sequence[str] = ()) -> dict[str, Any]:
    """Versions, commit and machine, for a record that somebody else must be able to reproduce."""
    versions = {"python": platform.python_version()}
    for package in ("latest-weight-averaging", "torch", "numpy", "safetensors", *packages):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "versions": versions,
        "commit": _commit(Path(__file__).resolve()),
        "machine": {"system": platform.platform(), "processor": _processor(), "cores": os.cpu_count()},
    }


@functools.cache
def _commit(file: Path) -> str | None:
    """The commit of the checkout that `file` belongs to; None when its repository, if any, does not track it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(file.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") or None
    except (OSError, subprocess.SubprocessError):
        return None


def _processor() -> str:
    """The processor's model name, which platform.processor() leaves empty on Linux."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
