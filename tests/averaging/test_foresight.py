from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lawa import EMA, LawaError, RunningMean, WeightAverager, Window
from lawa.averaging.foresight import check_settings, warn_what_is_never_ready


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mode": "evaluated"}, "mode='evaluated' must be"),
        ({"mode": "replace", "window": 3, "min_window": 4}, "min_window=4"),
        ({"mode": "evaluate", "placement": "disc"}, "placement='disc' must be one of"),
        ({"mode": "evaluate", "host_bytes": -1, "placement": "host"}, "host_bytes=-1"),
        ({"mode": "evaluate", "buffers": "none"}, "buffers='none' must be"),
        ({"mode": "evaluate", "replicas": "half"}, "replicas='half' must be"),
    ],
)
def test_settings_that_no_model_makes_right(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(LawaError, match=said):
        check_settings(settings)


def test_what_needs_the_model_is_left_for_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = torch.get_rng_state()
    monkeypatch.setattr("lawa.averaging.binding.ReplicaSlices", lambda *_: pytest.fail("made of a stand-in"))
    check_settings({"mode": "evaluate", "replicas": "split"})
    check_settings({"mode": "evaluate", "placement": "host", "host_bytes": 1})
    check_settings({"mode": "evaluate", "placement": lambda layout: pytest.fail("made of a stand-in")})
    check_settings({"mode": "replace", "moments": "average", "placement": "disk", "folder": tmp_path / "there"})
    check_settings({"mode": "evaluate", "strength": 0.5})  # the averager warns
    assert torch.equal(torch.get_rng_state(), drawn)
    assert not list(tmp_path.iterdir())


def said(averager: WeightAverager, *, after: int, last: int) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_what_is_never_ready(averager, after=after, last=last)
    return [str(one.message) for one in caught]


def test_an_average_that_gets_too_few_captures_is_named() -> None:
    averages = {
        "w": Window(3, every=2),
        "few": Window(3, every=2, min_window=2),
        "swa": RunningMean(start=6),
        "e": EMA(0.5),
    }
    averager = WeightAverager(nn.Linear(1, 1), mode="evaluate", averages=averages)
    assert said(averager, after=0, last=6) == []
    (one,) = said(averager, after=0, last=5)[:1]
    assert one.startswith(
        "the average 'w' (window 3, every 2, uniform) needs 3 captures and gets 2 until the last update, 5"
    )
    assert [line.split("'")[1] for line in said(averager, after=0, last=5)] == ["w", "swa"]
    assert [line.split("'")[1] for line in said(averager, after=2, last=6)] == ["w"]
    assert [line.split("'")[1] for line in said(averager, after=9, last=6)] == ["w", "few", "swa", "e"]
    assert all("gets 0 until" in line for line in said(averager, after=9, last=6)), "and not less"


def test_what_it_holds_counts_and_what_was_ready_once_is_not_spoken_of() -> None:
    averager = WeightAverager(nn.Linear(1, 1), mode="evaluate", every=1, window=3)
    averager.update(7)
    averager.update(8)
    assert said(averager, after=8, last=9) == []
    assert len(said(averager, after=8, last=8)) == 1
    cleared = WeightAverager(nn.Linear(1, 1), mode="replace", every=1, window=3, after_replace="clear")
    for _ in range(3):
        cleared.update()
    assert cleared.last_replacement == 3
    assert said(cleared, after=3, last=4) == []
