"""A run's config.yaml as flat settings: {"training.lr": "0.004", …}."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lawa.errors import LawaError, require


def flat_settings(path: Path, text: str | None) -> dict[str, str]:
    """The settings in `text`, which was read from `path`; none if there is no such file."""
    yaml = require("yaml", extra="report")
    try:
        configuration = yaml.safe_load(text or "")
    except yaml.YAMLError as bad:
        raise LawaError(f"{path} is not YAML ({bad})") from bad
    return dict(_flat(configuration, "")) if isinstance(configuration, dict) else {}


def _flat(value: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key, str(value)
