"""The batches of a run of one's own: its token store, read in the driver's order (`order.py`)."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lawa.data.given import at_least
from lawa.data.order import Order, batch
from lawa.data.shards import widen
from lawa.data.store import open_store
from lawa.errors import LawaError


@dataclass(frozen=True, kw_only=True)
class OwnOrderSettings:
    """
    store       the run's token store
    batch       sequences an update: training.batch
    context     tokens a sequence predicts: data.context
    seed        the run's
    weights     source → its share of the sequences; default: those that the store was built with
    vocab_size  ids are below it; they are not checked without it
    """

    store: Path
    batch: int
    context: int
    seed: int
    weights: dict[str, float] | None = None
    vocab_size: int | None = None

    def __post_init__(self) -> None:
        at_least("run", 1, batch=self.batch, context=self.context)
        at_least("run", 0, seed=self.seed)


class OwnOrder:
    """An open store and the run's order; any update can be asked for."""

    updates = range(1, sys.maxsize)

    def __init__(self, settings: OwnOrderSettings) -> None:
        """Raises LawaError where there is no store, or no such order of it."""
        self.settings = settings
        self.batch, self.context = settings.batch, settings.context
        self._store = open_store(settings.store)
        self._weights = settings.weights or self._store.weights["train"]
        if missing := self._store.train.keys() ^ self._weights.keys():
            raise LawaError(
                f"batches.run.weights and the sources of {settings.store} differ by {', '.join(sorted(missing))}; give "
                f"weights to {', '.join(self._store.train)}"
            )
        self._order = Order.over(
            self._store.train, self._weights, context=settings.context, batch=settings.batch, seed=settings.seed
        )

    @property
    def digest(self) -> str:
        identity = {**self._said(), "store": self._store.digest}
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    def rows(self, t: int, rows: slice | None = None) -> NDArray[np.int64]:
        ids = batch(self._store.train, self._order, t, rows)
        return widen(ids, self.context, self.settings.vocab_size, f"the batch of update {t}")

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "run",
            "store": str(self.settings.store),
            "store_digest": self._store.digest,
            **self._said(),
            "tokens": self._store.train_tokens,
            "end_of_text": self._store.end_of_text,
            "known": "the sequences of every update and their order, as lawa train reads them",
            "unknown": "",
        }

    def _said(self) -> dict[str, Any]:
        s = self.settings
        return {"batch": s.batch, "context": s.context, "seed": s.seed, "weights": dict(self._weights)}
