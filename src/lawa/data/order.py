"""Which sequences update t reads: a pure function of seed and update, for any update in constant time.

A source's tokens are cut into n = ⌊(tokens − 1)/context⌋ sequences of context + 1 tokens; sequence i starts at
i · context, so neighbours share one token: the last target of one is the first input of the next. Every epoch
is a permutation of the n sequences of its own (`permutation.py`), and the epochs lie end to end.

Update t ≥ 1 reads the positions p = (t − 1) · batch … t · batch − 1 of the run. With one source these are the
positions of its epochs. Several sources are mixed in blocks of 2^16 positions, of which source s has exactly
quota_s: its weight's share, rounded by largest remainder. Inside block b a permutation of its own takes a position
to a rank r; the source is the one with low_s ≤ r < low_s + quota_s (the quotas laid end to end), and what is read is
position b · quota_s + r − low_s of the source's own epochs.

So a run enters its order anywhere, a batch depends on neither ranks nor accumulation, and nothing but t needs to
be saved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from lawa.data.permutation import WORD, derive, permute
from lawa.errors import LawaError

Ids = Mapping[str, NDArray[np.integer]]  # source → its tokens

BLOCK = 1 << 16  # positions in which every source has exactly its quota


@dataclass(frozen=True, kw_only=True)
class Order:
    """The order in which a run reads its training tokens.

    tokens   source → length of its token array
    context  tokens a sequence predicts; a sequence holds one more
    batch    sequences an update, over all ranks and accumulation steps
    seed     0 ≤ seed < 2^64
    weights  source → its share of the sequences, relative to the others'; needed with several sources
    """

    tokens: Mapping[str, int]
    context: int
    batch: int
    seed: int
    weights: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def over(cls, ids: Ids, weights: Mapping[str, float], *, context: int, batch: int, seed: int) -> Order:
        """The order over these token arrays."""
        tokens = {name: len(array) for name, array in ids.items()}
        return cls(tokens=tokens, context=context, batch=batch, seed=seed, weights=weights)

    def __post_init__(self) -> None:
        assert self.sequences
        if self.batch < 1:
            raise LawaError(f"batch is {self.batch}; an update needs at least one sequence")
        if not 0 <= self.seed < WORD:
            raise LawaError(f"seed is {self.seed}; it must be at least 0 and below 2^64")
        for name, quota in self.quotas.items():
            if quota == 0:
                raise LawaError(
                    f"source {name!r} has weight {self.weights[name]} and would not be read once in {BLOCK:,} "
                    "sequences; raise its weight, or leave it out"
                )

    @cached_property
    def sequences(self) -> dict[str, int]:
        """Source → n, the sequences of one of its epochs."""
        return {name: count_sequences(tokens, self.context, name) for name, tokens in self.tokens.items()}

    @cached_property
    def quotas(self) -> dict[str, int]:
        """Source → how many of BLOCK positions are its own."""
        several = len(self.tokens) > 1
        return quotas({name: self.weights[name] if several else 1.0 for name in self.tokens}, BLOCK)

    def epochs(self, updates: int) -> dict[str, float]:
        """Source → how many times `updates` updates read it."""
        read = Fraction(updates * self.batch, BLOCK)
        return {name: float(read * quota / self.sequences[name]) for name, quota in self.quotas.items()}

    def indices(self, update: int, rows: slice | None = None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """What `update` (≥ 1) reads: the numbers of the sources and of their sequences, both int64 [rows].

        `rows` are those of the batch that are wanted; default: all.
        """
        if update < 1:
            raise LawaError(f"update is {update}; the first update is 1")
        first, row = (update - 1) * self.batch, np.arange(self.batch, dtype=np.int64)[rows or slice(None)]
        if len(self.tokens) == 1:
            (n,) = self.sequences.values()
            epoch, offset = divmod(first, n)  # Python's integers: no update is too large
            return np.zeros_like(row), _in_epochs(offset + row, n, self.seed, epoch)
        source, position = self._mix(first, row)
        index = np.empty_like(position)
        for number, n in enumerate(self.sequences.values()):
            mine = source == number
            index[mine] = _in_epochs(position[mine], n, derive(self.seed, number + 1))
        return source, index

    def _mix(self, first: int, row: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The source of each position first + row, and its place in that source's own epochs."""
        block, offset = divmod(first, BLOCK)
        place = offset + row
        blocks = block + place // BLOCK
        rank = permute(place % BLOCK, BLOCK, derive(self.seed, 0), blocks.astype(np.uint64))
        quota = np.array(list(self.quotas.values()), dtype=np.int64)
        ends = np.cumsum(quota)
        source = np.searchsorted(ends, rank, side="right")
        return source, blocks * quota[source] + rank - (ends - quota)[source]


def batch(ids: Ids, order: Order, update: int, rows: slice | None = None) -> NDArray[np.int64]:
    """The sequences of `update`, or those `rows` of them: int64 [rows, context + 1], read from the arrays `ids`."""
    there = {name: len(array) for name, array in ids.items()}
    assert list(there.items()) == list(order.tokens.items()), f"an order over {order.tokens} tokens was given {there}"
    source, index = order.indices(update, rows)
    sequences = np.empty((len(index), order.context + 1), dtype=np.int64)
    for number, array in enumerate(ids.values()):
        mine = source == number
        sequences[mine] = _read(array, index[mine], order.context)
    return sequences


def validation_sequences(
    ids: Ids, context: int, limit: int | None = None, weights: Mapping[str, float] | None = None
) -> NDArray[np.int64]:
    """At most `limit` sequences (None: all), spread evenly over each source: int64 [n, context + 1].

    They predict disjoint stretches of text and are always the same ones. Of several sources each has its weight's
    share of the limit (default: equal ones), or all that it has. Raises LawaError when a text is too short for one
    sequence, or limit < 1.
    """
    if limit is not None and limit < 1:
        raise LawaError(f"the limit of validation sequences is {limit}; at least one is needed")
    there = {name: count_sequences(len(array), context, name) for name, array in ids.items()}
    shares = {name: weights[name] if weights and len(ids) > 1 else 1.0 for name in ids}
    wanted = there if limit is None else quotas(shares, limit)
    found = []
    for name, array in ids.items():
        n = min(wanted[name], there[name])
        found.append(_read(array, np.arange(n, dtype=np.int64) * there[name] // max(n, 1), context))
    return np.concatenate(found)


def count_sequences(tokens: int, context: int, name: str) -> int:
    """n = ⌊(tokens − 1)/context⌋; LawaError when source `name` has not one."""
    if context < 1:
        raise LawaError(f"context is {context}; a sequence predicts at least one token")
    if tokens < context + 1:
        raise LawaError(
            f"{tokens} tokens of source {name!r} are too few for one sequence of {context + 1} (context {context} and "
            "the target of its last token); use more text or a shorter context"
        )
    return (tokens - 1) // context


def quotas(weights: Mapping[str, float], total: int) -> dict[str, int]:
    """`total` shared out by weight, by largest remainder: whole numbers that sum to it, each within 1 of its share."""
    for name, weight in weights.items():
        if not (isfinite(weight) and weight > 0):
            raise LawaError(f"source {name!r} has weight {weight}; a weight is a finite number above 0")
    unit = Fraction(total) / sum(map(Fraction, weights.values()))
    exact = {name: Fraction(weight) * unit for name, weight in weights.items()}
    shares = {name: int(share) for name, share in exact.items()}
    by_remainder = sorted(exact, key=lambda name: shares[name] - exact[name])  # stable: the first wins a tie
    for name in by_remainder[: total - sum(shares.values())]:
        shares[name] += 1
    return shares


def _in_epochs(position: NDArray[np.int64], n: int, seed: int, first_epoch: int = 0) -> NDArray[np.int64]:
    """The sequence at each position of the epochs laid end to end, which begin with `first_epoch`."""
    epochs = np.array([first_epoch % WORD], dtype=np.uint64) + (position // n).astype(np.uint64)
    return permute(position % n, n, seed, epochs)


def _read(ids: NDArray[np.integer], indices: NDArray[np.int64], context: int) -> NDArray[np.int64]:
    windows = np.lib.stride_tricks.sliding_window_view(ids, context + 1)  # a view; its rows are copied whole
    return windows[indices * context].astype(np.int64)
