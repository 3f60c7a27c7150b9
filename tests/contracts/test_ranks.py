"""The contract over the ways in which several processes train: real ones, by torchrun."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from contracts.adapters import LAUNCHED
from launching import launch

HERE = Path(__file__).parent
AGAIN = ("ZeRO-1", "ZeRO-2", "Lightning DDP")  # ZeRO-3 and the other ways of DDP stand for them


@pytest.mark.slow
@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=[pytest.mark.exhaustive] if way in AGAIN else []) for way in LAUNCHED]
)
def test_two_ranks(way: str, tmp_path: Path) -> None:
    said = launch(HERE / "launched.py", 2, str(tmp_path), timeout=300, LAWA_CONTRACT=way)
    counts = re.findall(r"(\d+) passed", said)
    assert len(counts) == 2, "both ranks came to the end"
    assert counts[0] == counts[1]
    assert int(counts[0]) > 20
