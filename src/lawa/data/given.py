"""What the readers of batches in a given order share: which sequences of an update are asked for, and plain checks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lawa.errors import LawaError, UsageError


def positions(t: int, rows: slice | None, *, batch: int, updates: range, where: str) -> NDArray[np.int64]:
    """The positions in the run, (t − 1) · batch + row, of these rows of update t's batch: int64 [rows].

    Raises LawaError when t is not one of `updates`, which `where` has.
    """
    if t not in updates:
        here = f"has those of updates {updates[0]} to {updates[-1]}" if updates else "has no whole batch"
        raise LawaError(f"the batch of update {t} is not in {where}, which {here}; give the files that hold it")
    return (t - 1) * batch + np.arange(batch, dtype=np.int64)[rows if rows is not None else slice(None)]


def at_least(kind: str, least: int, **settings: Any) -> None:
    """Raise UsageError unless every setting of this kind of batches is a whole number ≥ `least`."""
    for name, value in settings.items():
        if type(value) is not int or value < least:
            raise UsageError(f"batches.{kind}.{name}={value!r} must be a whole number of at least {least}")
