"""Which sequences update t reads: a pure function of seed and update, for any update in constant time.

The tokens are cut into n = ⌊(tokens − 1)/context⌋ sequences of context + 1 tokens; sequence i starts at
i · context, so neighbours share one token: the last target of one is the first input of the next. Every epoch
is a permutation of the n sequences of its own, and update t ≥ 1 reads the positions (t − 1) · batch …
t · batch − 1 of the epochs laid end to end. So a run enters its order anywhere, a batch depends on neither
ranks nor accumulation, and nothing but t needs to be saved.

The permutation is an alternating Feistel network on ℤ_a × ℤ_b with a · b ≥ n and a ≈ b ≈ √n (Black & Rogaway,
"Ciphers with arbitrary finite domains", 2002): write x = l + a·r, then by turns

    l ← (l + F(r)) mod a        r ← (r + F(l)) mod b

each of which can be undone, whatever F is. A result ≥ n goes through again until it is below n. F is
SplitMix64's finalizer on 64-bit integers: our own arithmetic, because NumPy's generators may change their
streams from version to version.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from lawa.errors import LawaError

_ROUNDS = 12
_GAMMA = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: SplitMix64's increment
_WORD = 1 << 64


@dataclass(frozen=True, kw_only=True)
class Order:
    """The order in which a run reads its training tokens.

    tokens   length of the token array
    context  tokens a sequence predicts; a sequence holds one more
    batch    sequences an update, over all ranks and accumulation steps
    seed     0 ≤ seed < 2^64
    """

    tokens: int
    context: int
    batch: int
    seed: int

    def __post_init__(self) -> None:
        count_sequences(self.tokens, self.context)
        if self.batch < 1:
            raise LawaError(f"batch is {self.batch}; an update needs at least one sequence")
        if not 0 <= self.seed < _WORD:
            raise LawaError(f"seed is {self.seed}; it must be at least 0 and below 2^64")

    @property
    def sequences(self) -> int:
        """n, the sequences of one epoch."""
        return count_sequences(self.tokens, self.context)

    def indices(self, update: int) -> NDArray[np.int64]:
        """The sequences that `update` (≥ 1) reads: int64 [batch], each in 0 … n − 1."""
        if update < 1:
            raise LawaError(f"update is {update}; the first update is 1")
        epoch, offset = divmod((update - 1) * self.batch, self.sequences)
        position = offset + np.arange(self.batch, dtype=np.int64)
        epochs = np.array([epoch % _WORD], dtype=np.uint64) + (position // self.sequences).astype(np.uint64)
        return permute(position % self.sequences, self.sequences, self.seed, epochs)


def permute(position: NDArray[np.int64], n: int, seed: int, epoch: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Where each position of 0 … n − 1 goes in its epoch's permutation; all arrays have one shape [m]."""
    key = _mix(_mix(np.array([seed], dtype=np.uint64)) + epoch)
    a = isqrt(n - 1) + 1
    b = -(-n // a)
    value = _feistel(position.astype(np.uint64), a, b, key)
    while (outside := np.flatnonzero(value >= n)).size:
        value[outside] = _feistel(value[outside], a, b, key[outside])
    return value.astype(np.int64)


def batch(tokens: NDArray[np.unsignedinteger], order: Order, update: int) -> NDArray[np.int64]:
    """The sequences of `update`: int64 [batch, context + 1], read from the array (or memory map) `tokens`."""
    assert len(tokens) == order.tokens, f"an order over {order.tokens} tokens was given {len(tokens)}"
    return _read(tokens, order.indices(update), order.context)


def validation_sequences(
    tokens: NDArray[np.unsignedinteger], context: int, limit: int | None = None
) -> NDArray[np.int64]:
    """At most `limit` sequences (None: all), spread evenly over `tokens`: int64 [n, context + 1].

    They predict disjoint stretches of text and are always the same ones. Raises LawaError when the text is too
    short for one, or limit < 1.
    """
    if limit is not None and limit < 1:
        raise LawaError(f"the limit of validation sequences is {limit}; at least one is needed")
    there = count_sequences(len(tokens), context)
    n = there if limit is None else min(limit, there)
    return _read(tokens, np.arange(n, dtype=np.int64) * there // n, context)


def count_sequences(tokens: int, context: int) -> int:
    """n = ⌊(tokens − 1)/context⌋; LawaError when there is not one."""
    if context < 1:
        raise LawaError(f"context is {context}; a sequence predicts at least one token")
    if tokens < context + 1:
        raise LawaError(
            f"{tokens} tokens are too few for one sequence of {context + 1} (context {context} and the target of "
            "its last token); use more text or a shorter context"
        )
    return (tokens - 1) // context


def _read(tokens: NDArray[np.unsignedinteger], indices: NDArray[np.int64], context: int) -> NDArray[np.int64]:
    places = indices[:, None] * context + np.arange(context + 1)
    return np.asarray(tokens[places], dtype=np.int64)


def _feistel(x: NDArray[np.uint64], a: int, b: int, key: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One pass of the network over 0 … a·b − 1."""
    left, right = x % a, x // a
    for turn in range(_ROUNDS):
        # The turns' keys lie farther apart than any half is large, so no two turns share an input of F.
        turn_key = key + np.array([(turn + 1) * _GAMMA % _WORD], dtype=np.uint64)
        if turn % 2 == 0:
            left = (left + _mix(turn_key + right) % a) % a
        else:
            right = (right + _mix(turn_key + left) % b) % b
    return left + a * right


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finalizer, a bijection of 64-bit words. Arrays only: NumPy's scalars warn when they wrap."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
