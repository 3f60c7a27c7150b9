"""The contract over the ways in which several processes train: real ones, by torchrun."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from contracts.adapters import LAUNCHED
from launching import launch

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.parametrize("way", LAUNCHED)
def test_two_ranks(way: str, tmp_path: Path) -> None:
    said = launch(HERE / "launched.py", 2, str(tmp_path), timeout=300, LAWA_CONTRACT=way)
    counts = re.findall(r"(\d+) passed", said)
    assert len(counts) == 2, "both ranks came to the end"
    assert counts[0] == counts[1]
    assert int(counts[0]) > 20
