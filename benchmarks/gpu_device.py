"""One device to measure on (a GPU, whose clock is events in its stream, or the CPU for a dry run), and how much."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

import models

Mark = torch.cuda.Event | float


class Device:
    """torch's current device of `kind` ("cuda" or "cpu")."""

    def __init__(self, kind: str) -> None:
        self.cuda = kind == "cuda"
        self.torch = torch.device("cuda", torch.cuda.current_device()) if self.cuda else torch.device("cpu")
        self.name = torch.cuda.get_device_name(self.torch) if self.cuda else "CPU, a dry run of the GPU's benchmark"

    def synchronize(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.torch)

    def mark(self) -> Mark:
        """A point in the compute stream's work; no host sync."""
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, first: Mark, second: Mark) -> float:
        """Seconds from one mark to another; both must have been reached (synchronize first)."""
        if isinstance(first, float):
            assert isinstance(second, float)
            return second - first
        assert isinstance(second, torch.cuda.Event)
        return first.elapsed_time(second) / 1e3

    def seconds(self, work: Callable[[], object], times: int = 1) -> float:
        """Seconds a call by the host's clock, from an idle device to an idle device."""
        self.synchronize()
        began = time.perf_counter()
        for _ in range(times):
            work()
        self.synchronize()
        return (time.perf_counter() - began) / times

    def busy(self) -> bool | None:
        """Whether the compute stream still has work; None on the CPU, where work is done when a call returns."""
        return not torch.cuda.current_stream(self.torch).query() if self.cuda else None

    @contextmanager
    def no_host_sync(self) -> Iterator[None]:
        """Within the block torch raises where it would make the host wait for the device."""
        if not self.cuda:
            yield
            return
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def allocated(self) -> int:
        """Bytes of device memory in use by tensors; 0 on the CPU."""
        self.synchronize()
        return torch.cuda.memory_allocated(self.torch) if self.cuda else 0

    def pinned(self) -> int | None:
        """Bytes of pinned host memory in use; None where torch does not count them."""
        if not self.cuda or not hasattr(torch.cuda, "host_memory_stats"):
            return None
        self.synchronize()
        return torch.cuda.host_memory_stats().get("active_bytes.current")

    @contextmanager
    def peak(self) -> Iterator[list[int]]:
        """A list that gets, after the block, the device bytes that were in use at most, beyond those before it."""
        before = self.allocated()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(self.torch)
        most: list[int] = []
        yield most
        self.synchronize()
        most.append(torch.cuda.max_memory_allocated(self.torch) - before if self.cuda else 0)

    def clear(self) -> None:
        """Give back the memory of what is no longer used."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured.

    side, products     matrix products of one update of the stall's work: side × side, and how many
    updates            of one turn
    batch, context     sequences of an update of training, and their tokens
    short, long        updates of one turn of training, where captures come every 10 and every 100
    elements           of the tensors that are averaged, and of those that are checked
    """

    name: str
    model: Callable[[], nn.Module]
    rounds: int
    side: int
    products: int
    updates: int
    batch: int
    context: int
    short: int
    long: int
    elements: int
    checked: int
    blocks: tuple[int, ...]


FULL = Sizes(
    name="GPT-2 small",
    model=models.gpt2_small,
    rounds=7,
    side=8192,
    products=24,
    updates=10,
    batch=8,
    context=1024,
    short=50,
    long=100,
    elements=124_000_000,
    checked=32 << 20,
    blocks=tuple(1 << power for power in range(20, 28)),
)
DRY = Sizes(
    name="tiny model",
    model=models.tiny,
    rounds=2,
    side=64,
    products=2,
    updates=3,
    batch=2,
    context=16,
    short=10,
    long=10,
    elements=100_000,
    checked=1 << 12,
    blocks=(1 << 14, 1 << 16),
)
