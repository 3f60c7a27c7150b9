"""What a model directory has beside its weights, from a checkpoint to an average of it. No torch."""

from __future__ import annotations

import shutil
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from lawa.records import read_json, write_json

BESIDE = (
    "config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*",
    "merges.txt", "spiece.model", "*.jinja", "preprocessor_config.json", "processor_config.json", "configuration_*.py",
    "modeling_*.py", "tokenization_*.py", "*.tiktoken", "*.bpe.model",
)  # fmt: skip
"""Configuration and tokenizer, and the code that an auto_map in them names."""

CONFIG = "config.json"
PROVENANCE = "provenance.json"
_DTYPE = ("dtype", "torch_dtype")  # transformers 5 and before


def is_beside(name: str) -> bool:
    """Whether a file at the top of a model's directory belongs to the model, and is no weights."""
    return any(fnmatchcase(name, pattern) for pattern in BESIDE)


def home_of(checkpoint: Path) -> Path | None:
    """Where its configuration and tokenizer lie: in itself, or beside it."""
    return next((place for place in (checkpoint, checkpoint.parent) if (place / CONFIG).is_file()), None)


def carry(source: Path, target: Path, *, dtype: str | None = None) -> None:
    """Copy the configuration and tokenizer in `source` into the directory `target`.

    dtype  what the weights are in now, where it is not what they were: config.json says so
    """
    for entry in sorted(source.iterdir()):
        if is_beside(entry.name) and entry.is_file():
            shutil.copyfile(entry, target / entry.name)
    config = target / CONFIG
    if dtype is not None and config.is_file():
        told = read_json(config)
        _set_dtype(told, dtype)
        write_json(config, told)


def _set_dtype(config: dict[str, Any], dtype: str) -> None:
    """Where one is told, in the configurations of a model's parts, too."""
    for key, value in config.items():
        if key in _DTYPE and isinstance(value, str):
            config[key] = dtype
        elif isinstance(value, dict) and key.endswith("_config") and key != "quantization_config":
            _set_dtype(value, dtype)
