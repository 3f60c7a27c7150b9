"""What was evaluated before: one JSON file each in a folder, found by what was asked and not by its name. No torch."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lawa.checkpoints.publish import to_disk
from lawa.errors import LawaError
from lawa.records import read_json

_DIGITS = 20  # of the key, in names of files


def key_of(question: Mapping[str, Any]) -> str:
    """SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()


class Done:
    """The records in `folder`; None keeps nothing.

    FOLDER/NAME.KEY.json: whole or not there, so that a kill loses the one in work and no other.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        if folder is not None and folder.exists() and not folder.is_dir():
            raise LawaError(f"{folder} is a file; choose another --output for records")

    def find(self, key: str) -> dict[str, Any] | None:
        if self.folder is None:
            return None
        file = next(iter(sorted(self.folder.glob(f"[!.]*.{key[:_DIGITS]}.json"))), None)
        return read_json(file) if file else None

    def add(self, key: str, name: str, record: Mapping[str, Any]) -> dict[str, Any]:
        """Keep it; the record as it will be read again."""
        text = json.dumps(record, indent=1, ensure_ascii=False)
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = self.folder / f"{_plain(name)}.{key[:_DIGITS]}.json"
            partial = file.with_name(f".{file.name}.partial")
            partial.write_text(text + "\n", encoding="utf-8")
            to_disk(partial, digest=False)
            partial.replace(file)
        return json.loads(text)


def _plain(name: str) -> str:
    """As a file's name: its last two parts."""
    return re.sub(r"[^\w.=@-]+", "-", "-".join(Path(name).parts[-2:])).strip("-.")[-80:] or "record"
