"""What a resumed run is told otherwise than before. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lawa.errors import UsageError

# These change what is shown, kept or where work is done, and not what the run is.
_SAFE = ("evaluation.", "checkpoints.", "tracking.", "data.workers", "data.store", "training.log_every",
         "training.micro_batch", "training.device")  # fmt: skip

Changed = dict[str, tuple[Any, Any]]


def between(before: Mapping[str, Any], after: Mapping[str, Any], path: str = "") -> Changed:
    """{setting: (before, after)} of everything that differs."""
    changed: Changed = {}
    for name in [*before, *(name for name in after if name not in before)]:
        was, now = before.get(name), after.get(name)
        inner = f"{path}.{name}" if path else name
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            changed.update(between(was, now, inner))
        elif was != now:
            changed[inner] = (was, now)
    return changed


def check(changed: Mapping[str, tuple[Any, Any]], *, force: bool) -> None:
    """Raise for settings that make it another run, unless that is wanted (`force`)."""
    other = [path for path, (was, now) in changed.items() if not _is_safe(path, was, now)]
    if other and not force:
        path = other[0]
        was, now = changed[path]
        more = f" (and {', '.join(other[1:])})" if other[1:] else ""
        raise UsageError(
            f"{path} was {was} and is {now}{more}: that makes it another run; leave it as it was, start a new run, "
            "or give --override to go on all the same, which is recorded"
        )


def _is_safe(path: str, was: Any, now: Any) -> bool:
    if path == "training.updates":
        return now > was
    return path.startswith(_SAFE)
