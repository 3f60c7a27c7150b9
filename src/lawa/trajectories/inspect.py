"""What is known of a trajectory, at one of its updates, and what one of its batches holds. No torch.

Nothing is fetched but a batch that is asked for, and its tokenizer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lawa.errors import LawaError, UsageError, require
from lawa.trajectories import registry
from lawa.trajectories.trajectory import Trajectory

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

KIND = "named trajectory"


def listed() -> dict[str, Any]:
    """The registered ones, under "kind": "trajectories"."""
    every = [registry.find(name) for name in registry.names()]
    return {
        "kind": "trajectories",
        "trajectories": [
            {
                "name": one.name,
                "family": one.family,
                "repo": one.repo,
                "checkpoints": len(one.steps),
                "updates": one.total,
                "tokens": _or_none(lambda one=one: one.tokens(one.total)),
                "data": one.data["kind"] if one.data else None,
                "optimizer": one.optimizer["format"] if one.optimizer else None,
            }
            for one in every
        ],
    }


def inspect(trajectory: Trajectory, step: int | None = None) -> dict[str, Any]:
    """All that is known, as plain values under "kind": "named trajectory".

    step  an update whose checkpoint, learning rate, tokens and next batch are told under "step"

    Raises UsageError for a step that the run does not have.
    """
    told = {
        "kind": KIND,
        "name": trajectory.name,
        "family": trajectory.family,
        "repo": trajectory.repo,
        "revisions": trajectory.naming.pattern,
        "checkpoints": len(trajectory.steps),
        "steps": ranges(trajectory.steps),
        "interval": trajectory.interval,
        "main": trajectory.main,
        "updates": trajectory.total,
        "batch": trajectory.batch,
        "context": trajectory.context,
        "tokens": _or_none(lambda: trajectory.tokens(trajectory.total)),
        "vocab_size": trajectory.vocab_size,
        "tokenizer": trajectory.tokenizer,
        "weights": trajectory.weights,
        "training": dict(trajectory.training),
        "lr": [{"update": t, "lr": trajectory.rate(t)} for t in _milestones(trajectory)],
        "data": None if trajectory.data is None else dict(trajectory.data),
        "optimizer": None if trajectory.optimizer is None else _states(trajectory.optimizer),
        "bad": _grouped(trajectory.bad),
        "same": [list(group) for group in trajectory.same],
        "notes": list(trajectory.notes),
    }
    return told if step is None else {**told, "step": _at(trajectory, step)}


def inspect_batch(trajectory: Trajectory, number: int, *, rows: int = 3, offline: bool = False) -> dict[str, Any]:
    """Batch `number`, counted from 0, which update `number` + 1 consumes, under "kind": "batch".

    rows     how many of its sequences are shown, as ids and as text
    offline  of the hub, only what is in its cache

    "digest" is the SHA-256 of its ids as little-endian int64, row by row. Raises UsageError for a batch that the run
    does not have, LawaError where it cannot be had. Without the tokenizer "text" is None, and "tokenizer" says why.
    """
    if not 0 <= number < trajectory.total:
        raise UsageError(f"{trajectory.name} has no batch {number}: its batches are 0 … {trajectory.total - 1}")
    from lawa.trajectories.data import batches_for

    update = number + 1
    batches = batches_for(trajectory, range(update, update + 1), offline=offline)
    ids = batches.rows(update)
    highest, vocabulary = int(ids.max()), trajectory.vocab_size
    if vocabulary and highest >= vocabulary:
        raise LawaError(
            f"batch {number} of {trajectory.name} holds the id {highest}, and its vocabulary has {vocabulary}; give "
            "the run's own data, and its vocab_size"
        )
    shown = ids[:rows]
    texts, tokenizer = _decoded(shown, trajectory.tokenizer, offline=offline)
    return {
        "kind": "batch",
        "trajectory": trajectory.name,
        "batch": number,
        "update": update,
        "shape": list(ids.shape),
        "digest": hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest(),
        "lowest": int(ids.min()),
        "highest": highest,
        "vocab_size": vocabulary,
        "data": batches.describe(),
        "tokenizer": tokenizer,
        "rows": [
            {"row": row, "ids": one.tolist(), "text": text}
            for row, (one, text) in enumerate(zip(shown, texts, strict=True))
        ],
    }


def ranges(steps: Sequence[int]) -> list[str]:
    """Ascending steps in few words: A:B:S for four and more that are equally far apart.

    >>> ranges([0, 1, 2, 4, 1000, 2000, 3000, 4000])
    ['0', '1', '2', '4', '1000:4000:1000']
    """
    found, at = [], 0
    while at < len(steps):
        end = at + 1
        while end + 1 < len(steps) and steps[end + 1] - steps[end] == steps[at + 1] - steps[at]:
            end += 1
        if end - at >= 3:
            found.append(f"{steps[at]}:{steps[end]}:{steps[end] - steps[end - 1]}")
            at = end + 1
        else:
            found.append(str(steps[at]))
            at += 1
    return found


def _at(trajectory: Trajectory, step: int) -> dict[str, Any]:
    if not 0 <= step <= trajectory.total:
        raise UsageError(f"{trajectory.name} has no update {step}: its updates are 1 … {trajectory.total}")
    return {
        "update": step,
        "revision": _or_none(lambda: trajectory.revision(step)),
        "lr": _or_none(lambda: trajectory.rate(step)),
        "next_lr": _or_none(lambda: trajectory.rate(step + 1)),
        "tokens": _or_none(lambda: trajectory.tokens(step)),
        "next_batch": step if step < trajectory.total else None,
        "bad": trajectory.bad.get(step),
    }


def _milestones(trajectory: Trajectory) -> list[int]:
    """Updates at which the rate is told: the first, the peak, the quarters, the last."""
    if not trajectory.training:
        return []
    total, peak = trajectory.total, trajectory.training.get("warmup", 0) + 1
    return sorted({1, min(peak, total), *(max(1, total * quarter // 4) for quarter in (1, 2, 3, 4))})


def _states(optimizer: Mapping[str, Any]) -> dict[str, Any]:
    steps = optimizer["steps"]
    return {**optimizer, "steps": None if steps is None else ranges(steps)}


def _grouped(bad: Mapping[int, str]) -> list[dict[str, Any]]:
    """[{steps, why}], each reason once."""
    return [
        {"steps": ranges(sorted(step for step, one in bad.items() if one == why)), "why": why}
        for why in dict.fromkeys(bad.values())
    ]


def _decoded(
    rows: NDArray[np.int64], tokenizer: str | None, *, offline: bool
) -> tuple[list[str | None], dict[str, str | None]]:
    """The texts of the rows, and {"name", "missing": why there are none}."""
    told: dict[str, str | None] = {"name": tokenizer, "missing": None}
    try:
        if tokenizer is None:
            raise LawaError("the run's tokenizer is not known")
        loaded = require("transformers", extra="train").AutoTokenizer.from_pretrained(
            tokenizer, local_files_only=offline
        )
    except Exception as failed:  # transformers raises OSError, ValueError and others, tokenizers bare Exception
        told["missing"] = str(failed).strip().partition("\n")[0].rstrip(".") or type(failed).__name__
        return [None] * len(rows), told
    return [loaded.decode(row.tolist()) for row in rows], told


def _or_none(ask: Any) -> Any:
    """What is not known as None."""
    try:
        return ask()
    except LawaError:
        return None
