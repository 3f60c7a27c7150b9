"""Every setting as people are shown it, by `lawa train --help` and in docs/configuration.md."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from lawa.settings import walk

_TYPES = {int: "whole number", float: "number", bool: "true or false", str: "text", Any: "any"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting.

    path     "training.lr"
    hint     its Python type
    default  as it would be written in YAML; "" where there is none, or where the help tells it
    choices  the only values it may have; empty where any will do
    """

    path: str
    help: str
    hint: Any
    default: str
    required: bool
    choices: Sequence[str]

    @property
    def type(self) -> str:
        """Its type in words."""
        return _words(self.hint)

    @property
    def choices_named(self) -> bool:
        """Whether the help names all its choices itself."""
        return all(choice in self.help for choice in self.choices)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """The settings under one name; those without a section have the name ""."""

    name: str
    purpose: str
    settings: tuple[Setting, ...]


def sections(cls: type) -> Iterator[Section]:
    """The sections of the configuration `cls` in its order; the purpose is the first line of a docstring."""
    hints = typing.get_type_hints(cls)
    found: dict[str, list[Setting]] = {}
    for path, field, hint in walk(cls):
        found.setdefault(path.rpartition(".")[0], []).append(_setting(path, field, hint))
    for name, settings in found.items():
        purpose = (hints[name].__doc__ or "").partition("\n")[0] if name else "Of the whole run."
        yield Section(name=name, purpose=purpose, settings=tuple(settings))


def _setting(path: str, field: dataclasses.Field[Any], hint: Any) -> Setting:
    missing = dataclasses.MISSING
    shown = field.default not in (missing, None)
    return Setting(
        path=path,
        help=field.metadata["help"],
        hint=hint,
        default=(str(field.default).lower() if isinstance(field.default, bool) else str(field.default))
        if shown
        else "",
        required=field.default is missing and field.default_factory is missing,
        choices=field.metadata["choices"] or (),
    )


def _words(hint: Any) -> str:
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return ", or ".join(_words(option) for option in options if option is not types.NoneType)
    if origin is list:
        return f"list of {_words(options[0])}"
    return "mapping" if origin is dict else _TYPES[hint]
