"""How an average is evaluated, and what tells the text before there is a tokenizer for it. No torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lawa.errors import UsageError

_BLOCK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """
    text     a token store, or text files
    context  tokens that predict; None: as many as the model takes, at most 2048
    limit    so many sequences, spread over the text; None: all of it
    batch    sequences at a time
    dtype    of the model, "float32"
    device   "cpu", "cuda"
    """

    text: str
    context: int | None = None
    limit: int | None = None
    batch: int = 8
    dtype: str = "float32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("context", "limit", "batch"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UsageError(f"{name}={value} must be at least 1")


def is_store(text: str) -> bool:
    """Whether it is a token store, rather than text."""
    return (Path(text) / "store.json").is_file()


def identity(text: str) -> dict[str, Any]:
    """{name, digest} of a token store's tokens, or of the bytes of text files; UsageError where there is none."""
    path = Path(text)
    if is_store(text):
        return {"text": path.name, "digest": json.loads((path / "store.json").read_text(encoding="utf-8"))["digest"]}
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    if not files:
        raise UsageError(f"--text {text} is no token store and no text; name a store, a file or a folder of files")
    hashed = hashlib.sha256()
    for file in files:
        hashed.update(f"{file.relative_to(path) if file != path else ''} {file.stat().st_size}\n".encode())
        with file.open("rb") as opened:
            while block := opened.read(_BLOCK):
                hashed.update(block)
    return {"text": path.name, "digest": hashed.hexdigest()}
