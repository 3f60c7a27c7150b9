"""Work on files that several processes share: what one says, all hear; what fails on one, fails on all."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

from torch import distributed

from lawa.errors import LawaError


def several() -> bool:
    """Whether there are other processes to agree with."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def rank() -> int:
    return distributed.get_rank() if several() else 0


def ranks() -> int:
    return distributed.get_world_size() if several() else 1


def from_first(work: Callable[[], Any]) -> Any:
    """What `work` gives on rank 0, on every rank; what it raises there is raised on all."""
    if not several():
        return work()
    told = [attempt(work) if rank() == 0 else None]
    distributed.broadcast_object_list(told)
    result, failed = told[0]  # type: ignore[misc]
    if failed is not None:
        raise failed
    return result


def on_all(work: Callable[[], Any]) -> list[Any]:
    """What `work` gives on each rank, on every rank; what it raises on any is raised on all."""
    own = attempt(work)
    told: list[Any] = [own]
    if several():
        told = [None] * distributed.get_world_size()
        distributed.all_gather_object(told, own)
    for _, failed in told:
        if failed is not None:
            raise failed
    return [result for result, _ in told]


def attempt(work: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """(what `work` gives, None), or (None, what it raises): in a form that other processes can be told."""
    try:
        return work(), None
    except Exception as failed:
        try:
            pickle.loads(pickle.dumps(failed))
        except Exception:
            return None, LawaError(f"{type(failed).__name__}: {failed}")
        return None, failed
