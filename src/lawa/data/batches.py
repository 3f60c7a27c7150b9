"""Batches that lie in an order given by others: those a public run read, or those of a run of one's own.

A kind of batches is a module with settings and a reader. Every path is local; opening one takes constant time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from lawa.errors import UsageError
from lawa.settings import build

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

KINDS = {  # kind → the module of its reader, the reader's class and that of its settings
    "preshuffled": ("lawa.data.preshuffled", "Preshuffled", "PreshuffledSettings"),
    "documents": ("lawa.data.documents", "Documents", "DocumentsSettings"),
    "run": ("lawa.data.own_order", "OwnOrder", "OwnOrderSettings"),
    "chunks": ("lawa.data.chunks", "Chunks", "ChunksSettings"),
    "indices": ("lawa.data.indices", "Indices", "IndicesSettings"),
}


@runtime_checkable
class Batches(Protocol):
    """Batches by the number of the update that consumes them.

    Update t ≥ 1 consumes batch t − 1, counted from 0: the checkpoint of update N is followed by update N + 1.
    """

    @property
    def context(self) -> int:
        """Tokens a sequence predicts; a row holds one more."""
        ...

    @property
    def batch(self) -> int:
        """Sequences an update, over all ranks and accumulation steps."""
        ...

    @property
    def updates(self) -> range:
        """The updates whose batches are here, in full."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 of sizes, settings and a sample of the content; of no path."""
        ...

    def rows(self, t: int, rows: slice | None = None) -> NDArray[np.int64]:
        """The sequences of update `t`, or those `rows` of them: int64 [rows, context + 1].

        Inputs are all tokens but the last, targets all but the first. Raises LawaError when the update is not here,
        and for an id outside the vocabulary.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Plain values for run.json: kind, files, sizes, and what is known and not known of the order."""
        ...


def open_batches(values: Mapping[str, Any]) -> Batches:
    """The batches of {KIND: {settings…}}.

    Raises UsageError for unknown kinds and wrong settings, LawaError for files that are missing or not as they must be.
    """
    reader, settings = _read(values)
    return reader(settings)


def absolute(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same {KIND: {settings…}} with absolute paths, which mean the same wherever a run is gone on with."""
    _, settings = _read(values)
    return {kind: {name: _absolute(getattr(settings, name)) for name in given} for kind, given in values.items()}


def _read(values: Mapping[str, Any]) -> tuple[Callable[[Any], Batches], Any]:
    """The class of reader that is asked for, and its settings."""
    if not isinstance(values, Mapping) or len(values) != 1 or (kind := next(iter(values))) not in KINDS:
        raise UsageError(f"batches are given as one of {', '.join(KINDS)} with its settings, not as {values!r}")
    module, reader, settings = KINDS[kind]
    found = import_module(module)
    return getattr(found, reader), build(getattr(found, settings), values[kind], f"batches.{kind}")


def _absolute(value: Any) -> Any:
    """Paths, and those in lists and mappings, made absolute; all else as it is."""
    if isinstance(value, Path):
        return str(value.absolute())
    if isinstance(value, list):
        return [_absolute(item) for item in value]
    return {key: _absolute(item) for key, item in value.items()} if isinstance(value, dict) else value
