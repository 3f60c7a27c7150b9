"""Where a run stands, and what of it is plain values: RUN/checkpoints/…/training/state.json."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

STATE = "state.json"


@dataclass(kw_only=True)
class Position:
    """Where a run stands.

    update    the last one done
    losses    the validation losses at that update by name, in nats, if it was evaluated
    unlogged  each process's sum of training losses since the last line of them, and of how many updates
    seconds   spent so far, by what they were spent on
    """

    update: int = 0
    losses: dict[str, float] = field(default_factory=dict)
    unlogged: tuple[list[float], int] = ([], 0)
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("training", "averaging", "evaluation", "checkpoints"), 0.0)
    )


@dataclass(frozen=True, kw_only=True)
class State:
    """The plain values of a saved training state.

    position  where the run stood
    format    "hf" or "dcp"
    world     processes that wrote it
    records   bytes of metrics.jsonl at that moment
    averager  its `meta` (JSON text: what each window holds, what is pending), or None
    scaler    the loss scaler's, or None
    """

    position: dict[str, Any]
    format: str
    world: int
    records: int
    averager: str | None
    scaler: dict[str, Any] | None

    def write(self, training: Path) -> None:
        (training / STATE).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, training: Path) -> State:
        return cls(**json.loads((training / STATE).read_text(encoding="utf-8")))

    @property
    def windows(self) -> dict[str, list[int]]:
        """The updates whose snapshots each window holds, oldest first."""
        return json.loads(self.averager)["windows"] if self.averager else {}
