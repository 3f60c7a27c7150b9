"""A small corpus of four documents, one of them hostile."""

from collections.abc import Callable
from pathlib import Path

import pytest

Write = Callable[[Path, dict[str, str]], Path]

HOSTILE = "\ufeffΨ 🙂e\u0301\x00 don 't  <|endoftext|>\r\n\t\n\n 日本語   \u2028end without a line end "


@pytest.fixture
def texts() -> dict[str, str]:
    return {
        "act1/storm.txt": "Blow, winds, and crack your cheeks! rage! blow!\n" * 20,
        "act1/wind.txt": "The rain it raineth every day, hey, ho, the wind and the rain.\n" * 20,
        "hostile.txt": HOSTILE,
        "sonnet.txt": "Shall I compare thee to a summer's day?\n\n\n" * 20,
    }


@pytest.fixture
def write() -> Write:
    """Lay out name → text below a folder, byte for byte."""

    def write(folder: Path, texts: dict[str, str]) -> Path:
        for name, text in texts.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(text.encode())
        return folder

    return write


@pytest.fixture
def folder(tmp_path: Path, texts: dict[str, str], write: Write) -> Path:
    return write(tmp_path / "text", texts)
