"""Errors a user can act on, and the one way to name a missing extra."""

from __future__ import annotations

import importlib
from types import ModuleType


class LawaError(ValueError):
    """The user's mistake or the world's: one sentence with what, where and what to do.

    The command line prints it without a traceback and exits with 1.
    """


class UsageError(LawaError):
    """A wrong setting or command, found before any work was done; the command line exits with 2."""


class NonFiniteAverage(LawaError):
    """An average holds inf or nan, and `strict` asked to stop for that."""


def require(module: str, *, extra: str) -> ModuleType:
    """Import `module`, or say which extra installs it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.split(".")[0] != module.split(".")[0]:
            raise
        raise LawaError(
            f"{module} is not installed; it comes with: pip install 'latest-weight-averaging[{extra}]'"
        ) from missing
