"""Pseudorandom permutations of 0 … n − 1 that can be entered anywhere, in constant time and memory.

An alternating Feistel network on ℤ_a × ℤ_b with a · b ≥ n and a ≈ b ≈ √n (Black & Rogaway, "Ciphers with
arbitrary finite domains", 2002): write x = l + a·r, then by turns

    l ← (l + F(r)) mod a        r ← (r + F(l)) mod b

each of which can be undone, whatever F is. A result ≥ n goes through again until it is below n. F is
SplitMix64's finalizer on 64-bit integers: our own arithmetic, because NumPy's generators may change their
streams from version to version.
"""

from __future__ import annotations

from math import isqrt

import numpy as np
from numpy.typing import NDArray

WORD = 1 << 64

_ROUNDS = 12
_GAMMA = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: SplitMix64's increment


def permute(position: NDArray[np.int64], n: int, seed: int, epoch: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Where each position of 0 … n − 1 goes in its epoch's permutation; all arrays have one shape [m]."""
    key = _mix(_mix(np.array([seed], dtype=np.uint64)) + epoch)
    a = isqrt(n - 1) + 1
    b = -(-n // a)
    value = _feistel(position.astype(np.uint64), a, b, key)
    while (outside := np.flatnonzero(value >= n)).size:
        value[outside] = _feistel(value[outside], a, b, key[outside])
    return value.astype(np.int64)


def derive(seed: int, stream: int) -> int:
    """A seed of its own for every stream (≥ 0) that goes back to one seed."""
    return int(_mix(_mix(np.array([seed ^ _GAMMA], dtype=np.uint64)) + np.array([stream], dtype=np.uint64))[0])


def _feistel(x: NDArray[np.uint64], a: int, b: int, key: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One pass of the network over 0 … a·b − 1."""
    left, right = x % a, x // a
    for turn in range(_ROUNDS):
        # The turns' keys lie farther apart than any half is large, so no two turns share an input of F.
        turn_key = key + np.array([(turn + 1) * _GAMMA % WORD], dtype=np.uint64)
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
