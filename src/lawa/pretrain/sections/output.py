"""The settings of what a run shows and keeps."""

from __future__ import annotations

from dataclasses import dataclass

from lawa.settings import check_at_least, check_choices, setting

SAVED = ("last", "all", "none")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """When and on how much of the held-out text."""

    every: int = setting(1000, "updates between evaluations of the plain weights and every ready average")
    sequences: int = setting(256, "held-out sequences, evenly spread over the text; the same ones each time")
    batch: int = setting(32, "sequences a forward")

    def __post_init__(self) -> None:
        check_at_least(self, "evaluation", 1, "every", "sequences", "batch")


@dataclass(frozen=True, kw_only=True)
class CheckpointsConfig:
    """What is written, and what is kept."""

    every: int = setting(1000, "updates between checkpoints")
    keep: int | None = setting(None, "how many checkpoints are kept, the latest; default: all")
    resumable: int = setting(2, "how many of the latest keep what training needs to go on from them")
    save_averages: str = setting(
        "last", "averaged weights beside a checkpoint: the last ones are kept, or all, or none made", choices=SAVED
    )

    def __post_init__(self) -> None:
        check_choices(self, "checkpoints")
        check_at_least(self, "checkpoints", 1, "every", "keep", "resumable")
