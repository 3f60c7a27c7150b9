"""The learning rate of update t, 1 ≤ t ≤ T. No torch.

Warm-up is linear: lr · t/W for t ≤ W. With r = (t − W)/(T − W), from 0 to 1:

    constant  lr
    linear    lr − (lr − min_lr) · r
    cosine    min_lr + (lr − min_lr) · (1 + cos(πr))/2
    wsd       lr, and over the last D updates linearly down to min_lr (warm-up, stable, decay)
"""

from __future__ import annotations

import math

SCHEDULES = ("constant", "linear", "cosine", "wsd")


def learning_rate(
    t: int, *, schedule: str, lr: float, min_lr: float, updates: int, warmup: int, decay: int = 0
) -> float:
    """The learning rate used by update t.

    updates, warmup, decay  T, W and D, in updates
    """
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
