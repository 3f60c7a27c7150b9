"""The settings of where a run is watched from outside."""

from __future__ import annotations

from dataclasses import dataclass

from lawa.errors import UsageError
from lawa.settings import setting

TRACKERS = ("tensorboard", "wandb", "trackio")


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Which trackers are told what metrics.jsonl records, and under which names."""

    trackers: list[str] = setting([], "told every record of metrics.jsonl; default: none", choices=TRACKERS)
    project: str = setting("lawa", "the project that wandb and trackio file the run under")
    name: str | None = setting(None, "what the trackers call the run; default: the name of its directory")

    def __post_init__(self) -> None:
        for tracker in self.trackers:
            if tracker not in TRACKERS:
                raise UsageError(f"tracking.trackers={tracker!r} must be one of {', '.join(TRACKERS)}")
            if self.trackers.count(tracker) > 1:
                raise UsageError(f"tracking.trackers names {tracker} twice; name it once")
        for name in ("project", "name"):
            value = getattr(self, name)
            if value is not None and (not value or "/" in value or value in (".", "..")):
                raise UsageError(f"tracking.{name}={value!r} must be a name, without a slash")
