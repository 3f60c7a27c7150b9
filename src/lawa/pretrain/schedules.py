"""The learning rate of update t, 1 ≤ t ≤ T. No torch.

Warm-up is linear: lr · t/W for t ≤ W. With r = (t − W)/(T − W), from 0 to 1:

    constant  lr
    linear    lr − (lr − min_lr) · r
    cosine    min_lr + (lr − min_lr) · (1 + cos(πr))/2
    wsd       lr, and over the last D updates linearly down to min_lr (warm-up, stable, decay)

GPT-NeoX counts iterations from 0: its scheduler is built at iteration 0 and steps after each update, so update t
uses the rate of s = t − 1. The first update after a warm-up has rate 0 (Pythia's step1 equals its step0), and the
last one has not quite reached the end. With n = s − W, and never below min_lr after warm-up:

    neox-1.0-cosine   lr · (1 + cos(π · min(n, T − 2W)/T))/2                  Pythia; the floor comes before the end
    neox-1.0-linear   lr · (T − min(n, T − 2W))/T                             ends at lr · 2W/T
    neox-2023-cosine  min_lr + (lr − min_lr) · (1 + cos(π · n/(T − W)))/2
    neox-2023-linear  lr · (T − W − n)/(T − W)                                to 0, cut off at min_lr

Source: EleutherAI/gpt-neox, megatron/learning_rates.py. The 1.0 forms are those of tag v1.0 (71df4d50), which
trained Pythia, and still of v2.0; the 2023 forms those since eda5aae4 (12 August 2023, cosine) and 390d37cc
(24 September 2023, linear). Since 19f294d5 (May 2026) NeoX's first update has the rate of its second.
"""

from __future__ import annotations

import math

_NEOX = ("neox-1.0-cosine", "neox-1.0-linear", "neox-2023-cosine", "neox-2023-linear")
SCHEDULES = ("constant", "linear", "cosine", "wsd", *_NEOX)


def learning_rate(
    t: int, *, schedule: str, lr: float, min_lr: float, updates: int, warmup: int, decay: int = 0
) -> float:
    """The learning rate used by update t.

    updates, warmup, decay  T, W and D, in updates
    """
    if schedule in _NEOX:
        return _neox(t - 1, schedule=schedule, lr=lr, min_lr=min_lr, total=updates, warmup=warmup)
    if t <= warmup:
        return lr * t / warmup
    if schedule == "constant":
        return lr
    if schedule == "wsd":
        falling = max(0, t - (updates - decay))
        return lr - (lr - min_lr) * falling / decay if falling else lr
    r = min(1.0, (t - warmup) / (updates - warmup))
    if schedule == "linear":
        return lr - (lr - min_lr) * r
    assert schedule == "cosine", schedule
    return min_lr + (lr - min_lr) * (1 + math.cos(math.pi * r)) / 2


def _neox(s: int, *, schedule: str, lr: float, min_lr: float, total: int, warmup: int) -> float:
    """GPT-NeoX's rate at its iteration s ≥ 0."""
    _, form, shape = schedule.split("-")
    n, end = s - warmup, total - warmup
    if form == "1.0":
        n, end = min(s, end) - warmup, total
    if warmup and s <= warmup:
        return lr * (n + warmup) / warmup
    if shape == "linear":
        rate = lr * (end - n) / end
    elif form == "1.0":
        rate = lr / 2 * (math.cos(math.pi * n / end) + 1)
    else:
        rate = min_lr + (lr - min_lr) / 2 * (math.cos(math.pi * n / end) + 1)
    return max(rate, min_lr)
