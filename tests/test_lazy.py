"""Importing lawa and naming what one wants costs nothing: no torch, no numpy, no transformers."""

from __future__ import annotations

import subprocess
import sys

import pytest

import lawa

HEAVY = ("torch", "numpy", "transformers", "safetensors")
LIGHT = [
    "import lawa",
    "import lawa; lawa.__version__; dir(lawa)",
    "import lawa; lawa.Window(10, every=1000)",
    "import lawa; lawa.Window(4, every=10, coefficients='one_minus_sqrt')",
    "import lawa; lawa.Cadence(every=5).due(10)",
    "import lawa; lawa.EMA(0.999); lawa.EMA.matched(lawa.Window(10, every=1000))",
    "import lawa; lawa.RunningMean(start=5000)",
    "import lawa; lawa.LawaError; lawa.NonFiniteAverage",
    "from lawa import EMA, Cadence, LawaError, RunningMean, Window",
    "import lawa.cadence, lawa.errors, lawa.records, lawa.version",
    "import lawa.averaging.averages, lawa.averaging.coefficients",
]


def loaded_by(statements: str) -> set[str]:
    """Which heavy modules a fresh Python has loaded after them."""
    script = f"{statements}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    return {name for name in done.stdout.split() if name in HEAVY}


def test_nothing_heavy_is_loaded() -> None:
    """All of them in one Python: what loads nothing together loads nothing alone."""
    assert loaded_by("\n".join(LIGHT)) == set()


def test_the_test_above_can_fail() -> None:
    assert "torch" in loaded_by("import lawa; lawa.WeightAverager")


def test_every_door_opens_and_no_other() -> None:
    for name in lawa.__all__:
        assert getattr(lawa, name) is not None
        assert name in dir(lawa)
    with pytest.raises(AttributeError, match="module 'lawa' has no attribute 'Averager'"):
        _ = lawa.Averager  # type: ignore[attr-defined]


def test_the_doors_are_these() -> None:
    """A public name more or less is a decision, and this line is where it shows."""
    assert set(lawa.__all__) == {
        "EMA", "AveragerState", "Cadence", "LawaError", "NonFiniteAverage", "RunningMean", "WeightAverager", "Window",
        "__version__", "average", "estimate", "save_average",
    }  # fmt: skip
