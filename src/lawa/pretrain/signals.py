"""SIGTERM and Ctrl-C: finish the update, write a checkpoint, stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(Exception):
    """The run was asked to stop, and has: its checkpoint of `update` is whole."""

    def __init__(self, signal_number: int, update: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name} after update {update}")
        self.signal_number = signal_number
        self.update = update


class Terminated(KeyboardInterrupt):
    """SIGTERM where no update is to be finished: while text is tokenized, or a model is made."""


class Stop:
    """Whether a signal has asked the run to stop. A second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.asked = 0  # the signal's number

    def ask(self, number: int, frame: FrameType | None = None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = number

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within the block signals ask; only a process's main thread can listen."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def terminable() -> Iterator[None]:
    """Within the block SIGTERM raises Terminated, so that what is under way is cleared away as after Ctrl-C."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def ignore_sigterm() -> None:
    """From now on: this process is ending, and has something to say."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
