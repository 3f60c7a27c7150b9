"""One thread that writes behind training."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Writer:
    """At most one piece of work at a time; its failure is raised where training asks next."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._failed: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin `work` when the one before is done."""
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(work,), name="lawa-writer", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise what the work failed with, if it has."""
        if self._failed is not None:
            failed, self._failed = self._failed, None
            raise failed

    def end(self) -> None:
        """Until the work is done, or has failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def wait(self) -> None:
        """Until the work is done."""
        self.end()
        self.check()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as failed:
            self._failed = failed
