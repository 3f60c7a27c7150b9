"""Where a run stands, and what of it is plain values: RUN/checkpoints/…/training/state.json."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lawa.errors import LawaError

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
        """The state saved in `training`; LawaError where it is damaged, or of another version."""
        file = training / STATE
        try:
            state = cls(**json.loads(file.read_text(encoding="utf-8")))
            Position(**state.position)
            if not isinstance(state.averaging, dict):
                raise TypeError(f"averager: {state.averager!r}")
        except OSError as missing:
            raise LawaError(f"{file} cannot be read ({missing.strerror}); the checkpoint is incomplete") from None
        except (TypeError, ValueError) as bad:
            raise LawaError(f"{file} is no training state ({bad!r}); it is damaged, or of another version") from None
        return state

    @property
    def averaging(self) -> dict[str, Any]:
        """The averager's `meta`; {} without averaging."""
        return json.loads(self.averager) if self.averager else {}

    @property
    def windows(self) -> dict[str, list[int]]:
        """The updates whose snapshots each window holds, oldest first."""
        return self.averaging.get("windows", {})
