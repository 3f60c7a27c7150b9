"""From YAML and flags to frozen dataclasses: nothing unknown passes, nothing is guessed. No torch.

A setting is a dataclass field with a type, a default and a help text. Values come from a mapping (YAML)
or as text (flags), and are converted by the field's type; every error names the setting by its path.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lawa.errors import UsageError


def setting(default: Any, help: str, *, choices: Sequence[str] | None = None) -> Any:
    """A field with its default, the sentence that --help shows, and the only values it may have."""
    metadata = {"help": help, "choices": choices}
    if isinstance(default, (dict, list)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def required(help: str) -> Any:
    """A field that the user must give."""
    return dataclasses.field(metadata={"help": help, "choices": None})


def check_choices(section: Any, path: str) -> None:
    """Raise for a field of `section` that has none of its choices; one that may be left out may be None."""
    for field in dataclasses.fields(section):
        value, choices = getattr(section, field.name), field.metadata["choices"]
        if choices and value not in choices and not (value is None and field.default is None):
            raise UsageError(f"{path}.{field.name}={value!r} must be one of {', '.join(choices)}")


def check_at_least(section: Any, path: str, least: int, *names: str) -> None:
    """Raise for a field of `section` below `least`, or not a finite number; None was not given."""
    for name in names:
        value = getattr(section, name)
        if value is not None and not least <= value < math.inf:
            raise UsageError(f"{path}.{name}={value} must be at least {least}")


def check_seed(path: str, seed: int) -> None:
    """Raise for a seed that numpy or torch would not take."""
    if not 0 <= seed < 1 << 63:
        raise UsageError(f"{path}={seed} must be at least 0 and below 2^63")


def build(cls: type, values: Mapping[str, Any], path: str = "") -> Any:
    """An instance of the dataclass `cls` from a mapping; `path` names it in errors."""
    if not isinstance(values, Mapping):
        raise UsageError(f"{path or 'the configuration'} must be a mapping of settings, not {values!r}")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"; did you mean {_join(path, near[0])}?" if near else f"; it has {', '.join(fields)}"
            raise UsageError(f"unknown setting {_join(path, key)}{hint}")
    given = {}
    for name, field in fields.items():
        if name in values:
            given[name] = convert(values[name], hints[name], _join(path, name))
        elif dataclasses.is_dataclass(hints[name]):
            given[name] = build(hints[name], {}, _join(path, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            told = f": {field.metadata['help']}" if "help" in field.metadata else ""
            raise UsageError(f"{_join(path, name)} is not set{told}")
    return cls(**given)


def convert(value: Any, hint: Any, path: str) -> Any:
    """`value` as the type `hint`; text is accepted where it can only mean that."""
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, path)
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and types.NoneType in options:
            return None
        kinds = [option for option in options if option is not types.NoneType]
        mappings = [kind for kind in kinds if typing.get_origin(kind) is dict]
        return convert(value, mappings[0] if mappings and isinstance(value, Mapping) else kinds[0], path)
    if hint is Any:
        return value
    if origin is list:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list):
            raise UsageError(f"{path}={value!r} must be a list")
        return [convert(item, options[0], f"{path}[{i}]") for i, item in enumerate(items)]
    if origin is dict:
        if not isinstance(value, Mapping):
            raise UsageError(f"{path}={value!r} must be a mapping")
        return {
            convert(key, options[0], _join(path, key)): convert(item, options[1], _join(path, key))
            for key, item in value.items()
        }
    return _scalar(value, hint, path)


def walk(cls: type, path: str = "") -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
    """(path, field, type) of every setting, section by section."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        name = _join(path, field.name)
        if dataclasses.is_dataclass(hints[field.name]):
            yield from walk(hints[field.name], name)
        else:
            yield name, field, hints[field.name]


def merge(base: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the settings of `overlay` laid over it, mapping by mapping."""
    result = dict(base)
    for key, value in overlay.items():
        below = result.get(key)
        result[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return result


def nested(path: str, value: Any) -> dict[str, Any]:
    """{"a": {"b": value}} of the path "a.b"."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


def _scalar(value: Any, hint: type, path: str) -> Any:
    what = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}[hint]
    wrong = UsageError(f"{path}={value!r} must be {what}")
    if hint is bool:
        if isinstance(value, bool):
            return value
        raise wrong
    if isinstance(value, bool):
        raise wrong
    if hint is Path and isinstance(value, (str, os.PathLike)):
        return Path(value)
    if hint is Path:
        raise wrong
    if hint is str:
        if isinstance(value, (str, int, float)):
            return str(value)
        raise wrong
    try:
        if hint is int and isinstance(value, float):
            if value != int(value):
                raise wrong
            return int(value)
        return hint(value)  # YAML reads 4e-3 as text: a number all the same
    except (TypeError, ValueError, OverflowError):
        raise wrong from None


def _join(path: str, name: object) -> str:
    return f"{path}.{name}" if path else str(name)
