"""Batches that lie in an order given by others: those a public run read, or those of a run of one's own.

A kind of batches is a module with settings and a reader. Every path is local; opening one takes constant time.
"""

from __future__ import annotations

import difflib
import os
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from lawa.errors import UsageError

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


def build(cls: type, values: object, path: str) -> Any:
    """An instance of the dataclass `cls` from a mapping of its fields; `path` names it in errors (UsageError)."""
    if not isinstance(values, Mapping):
        raise UsageError(f"{path} must be a mapping of settings, not {values!r}")
    known = {field.name: field for field in fields(cls)}
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            raise UsageError(
                f"unknown setting {path}.{key}; "
                + (f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}")
            )
    for name, field in known.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise UsageError(f"{path}.{name} is not set")
    hints = typing.get_type_hints(cls)
    return cls(**{name: _convert(value, hints[name], f"{path}.{name}") for name, value in values.items()})


def _read(values: Mapping[str, Any]) -> tuple[Callable[[Any], Batches], Any]:
    """The class of reader that is asked for, and its settings."""
    if not isinstance(values, Mapping) or len(values) != 1 or (kind := next(iter(values))) not in KINDS:
        raise UsageError(f"batches are given as one of {', '.join(KINDS)} with its settings, not as {values!r}")
    module, reader, settings = KINDS[kind]
    found = import_module(module)
    return getattr(found, reader), build(getattr(found, settings), values[kind], f"batches.{kind}")


def _convert(value: Any, hint: Any, path: str) -> Any:
    """`value` as the type `hint`; UsageError where it is none."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        some = [option for option in options if option is not types.NoneType]
        return None if value is None and len(some) < len(options) else _convert(value, some[0], path)
    if origin is list and isinstance(value, Sequence) and not isinstance(value, str):
        return [_convert(item, options[0], f"{path}[{i}]") for i, item in enumerate(value)]
    if origin is dict and isinstance(value, Mapping):
        keys = {
            key: int(key) if options[0] is int and str(key).isdecimal() else key for key in value
        }  # JSON's are text
        return {
            _convert(keys[key], options[0], path): _convert(value[key], options[1], f"{path}.{key}") for key in value
        }
    accepted = {Path: (str, os.PathLike), float: (int, float)}.get(hint, origin or hint)
    if origin or not isinstance(value, accepted) or isinstance(value, bool) is not (hint is bool):
        raise UsageError(f"{path}={value!r} must be {_NAMES.get(origin or hint, 'text')}")
    return hint(value)


_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "a mapping",
    Path: "a path",
}


def _absolute(value: Any) -> Any:
    """Paths, and those in lists and mappings, made absolute; all else as it is."""
    if isinstance(value, Path):
        return str(value.absolute())
    if isinstance(value, list):
        return [_absolute(item) for item in value]
    return {key: _absolute(item) for key, item in value.items()} if isinstance(value, dict) else value
