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
