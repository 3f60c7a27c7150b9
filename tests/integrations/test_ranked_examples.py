"""The examples that torchrun starts, as they are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from launching import TESTS, launch

EXAMPLES = TESTS.parent / "examples"


def run(example: str, folder: Path) -> str:
    return launch(TESTS / "integrations" / "ran.py", 2, str(EXAMPLES / example), TMPDIR=str(folder))


@pytest.mark.slow
def test_ddp(tmp_path: Path) -> None:
    said = run("ddp.py", tmp_path)
    losses = re.findall(r"(\w+): held-out loss ([\d.]+), of the average of \[170, 180, 190, 200\]: ([\d.]+)", said)
    assert [mode for mode, _, _ in losses] == ["evaluate", "replace"]
    (_, plain, average), (_, replaced, same) = losses
    assert float(average) < float(plain)
    assert replaced == same, "the last update's replacement was carried out"
    assert "resumed at update 200 with the snapshots of [170, 180, 190, 200]" in said


@pytest.mark.slow
def test_fsdp2(tmp_path: Path) -> None:
    said = run("fsdp2.py", tmp_path)
    losses = re.findall(r"update (\d+): held-out loss ([\d.]+), of the average of \[.*\]: ([\d.]+)", said)
    assert [int(update) for update, _, _ in losses] == [50, 100, 150]
    assert float(losses[-1][2]) < float(losses[-1][1])
    assert re.search(r"average: 28,544 parameters", said)
