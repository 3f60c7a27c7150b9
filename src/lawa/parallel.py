"""The same work on the machines of a Ray cluster that share a file system.

Work comes in batches that are independent and may be done twice: one whose worker is lost is done anew elsewhere.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from lawa.errors import LawaError, require

Batch = TypeVar("Batch")
Shared = TypeVar("Shared")
Result = TypeVar("Result")

_RETRIES = 3  # of a batch whose worker was lost
_PATIENCE = 10  # seconds until a cluster must answer
_HOST_PORT = re.compile(r"(?P<host>[^/:]+):(?P<port>\d+)")


class ClusterError(LawaError):
    """The cluster failed, and not the work: what was done before stays, and can be gone on with."""


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster.

    address  as in ray.init; None: RAY_ADDRESS, the cluster that this machine is in, or one of this machine alone

    Raises LawaError where ray is not installed.
    """

    address: str | None = None

    def __post_init__(self) -> None:
        require("ray", extra="ray")

    def run(
        self, work: Callable[[Shared, Batch], Result], shared: Shared, batches: Sequence[Batch]
    ) -> Iterator[Result]:
        """What `work(shared, batch)` returns, as batches are done, in any order; each has one core.

        work    a function of a module that every machine of the cluster has installed
        shared  sent to each machine once

        What `work` raises is raised here, once no batch runs any more. Raises ClusterError where no cluster answers,
        and for a batch that loses its workers again and again.
        """
        ray = require("ray", extra="ray")
        connected = ray.is_initialized()
        if not connected:
            self._connect(ray)
        try:
            yield from _results(ray, work, shared, batches)
        finally:
            if not connected:
                ray.shutdown()

    def _connect(self, ray: Any) -> None:
        address = self.address or os.environ.get("RAY_ADDRESS")
        try:
            if address and (told := _HOST_PORT.fullmatch(address)):  # ray itself goes on asking for minutes
                socket.create_connection((told["host"], int(told["port"])), timeout=_PATIENCE).close()
            ray.init(address=self.address, log_to_driver=False, logging_level="warning")
        except (OSError, RuntimeError, ValueError) as failed:
            where = address or "this machine"
            raise ClusterError(f"no Ray cluster answers at {where} ({_line(failed)}); look with: ray status") from None


def _results(ray: Any, work: Callable[..., Result], shared: object, batches: Sequence[object]) -> Iterator[Result]:
    task = ray.remote(num_cpus=1, max_retries=_RETRIES)(work)
    sent = ray.put(shared)
    running = [task.remote(sent, batch) for batch in batches]
    try:
        while running:
            [ready], running = ray.wait(running)
            yield _result(ray, ready)
    finally:
        for one in running:
            ray.cancel(one)
        if running:
            ray.wait(running, num_returns=len(running))


def _result(ray: Any, ready: Any) -> Any:
    try:
        return ray.get(ready)
    except ray.exceptions.RayTaskError as failed:
        raise failed.cause from None
    except ray.exceptions.RayError as lost:
        raise ClusterError(
            f"a batch lost its worker {_RETRIES + 1} times ({_line(lost)}); look at the memory and disks of the "
            "cluster's machines, then start it again: it goes on where it was"
        ) from None


def _line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__
