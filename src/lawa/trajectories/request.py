"""An output directory that belongs to one request: begun anew, or gone on with by the same one. No torch.

DIR/NAME.json has what was asked for; DIR/.lock is held while a process works.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lawa.errors import LawaError, UsageError
from lawa.records import read_json, write_json

_LOCK = ".lock"


def begin(directory: Path, name: str, request: Mapping[str, Any]) -> None:
    """Write DIRECTORY/NAME.json, or see that it has the same; UsageError where the directory is something else's."""
    file, told = directory / f"{name}.json", json.loads(json.dumps(request))
    if file.is_file():
        if differing := _difference(read_json(file), told):
            raise UsageError(
                f"{directory} holds another {name}: {differing}; ask for the same again, or choose another --output"
            )
        return
    if directory.exists() and (not directory.is_dir() or any(one.name != _LOCK for one in directory.iterdir())):
        raise UsageError(f"{directory} exists already and is no {name} (no {file.name}); choose another --output")
    directory.mkdir(parents=True, exist_ok=True)
    write_json(file, told)


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Hold the directory for this one process; a process that is killed gives it back."""
    if not directory.exists() or directory.is_dir():
        directory.mkdir(parents=True, exist_ok=True)
    else:
        raise UsageError(f"{directory} is a file; choose another --output")
    with (directory / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LawaError(f"another process works in {directory}; wait for it, or choose another --output") from None
        yield


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first field in which two requests differ, in words."""
    for key in now:
        if key not in before or before[key] != now[key]:
            own, its = now[key], before.get(key)
            if isinstance(own, Mapping) and isinstance(its, Mapping):
                inner = next(one for one in {**its, **own} if own.get(one) != its.get(one))
                return f"its {key} {inner} is {_short(its.get(inner))} and not {_short(own.get(inner))}"
            return f"its {key} differ{'s' if not key.endswith('s') else ''} ({_short(its)} and not {_short(own)})"
    return None


def _short(value: Any) -> str:
    if isinstance(value, list) and len(value) > 4:
        return f"{value[0]}, {value[1]}, … {value[-1]} ({len(value)} in all)"
    return str(value)[:100]
