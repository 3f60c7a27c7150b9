"""What is compared with the peers is what it says, and a wrong average is found out."""

import dataclasses
import importlib

import pytest
import torch


@pytest.fixture
def peers(benchmark_modules, monkeypatch):
    """The benchmark with ours and torch's own averages: the other peers take seconds to import (test_smoke.py)."""
    module = importlib.import_module("peers")
    monkeypatch.setattr(module, "PEERS", {one: its for one, its in module.PEERS.items() if one.startswith("torch")})
    monkeypatch.setattr(module, "ALL", module.OURS | module.PEERS)
    return module


def by_name(found):
    return {one.name: one for one in found}


def test_ours_err_by_one_rounding_and_averages_kept_in_bf16_by_more(peers):
    found = by_name(peers.exactness(peers.ALL, draws=100))
    assert found["peers/exact"].held, found["peers/exact"].detail
    for one in peers.OURS:
        assert found[f"peers/bf16/error/{one}"].ratio.median == pytest.approx(1, abs=0.01)
    for one in peers.PEERS:
        assert found[f"peers/bf16/error/{one}"].ratio.median > 2


@pytest.mark.parametrize("one", ["ema", "mean", "window"])
def test_an_average_that_is_another_one_does_not_pass(peers, monkeypatch, one):
    ours = peers.ALL[one]

    def late(model, beta):
        made = ours.make(model, beta)
        seen = []

        def update():
            seen.append(None)
            if len(seen) != 15:  # one reading is left out
                made.update()

        return dataclasses.replace(made, update=update)

    monkeypatch.setitem(peers.ALL, one, dataclasses.replace(ours, make=late))
    check = by_name(peers.exactness(peers.ALL, draws=20))["peers/exact"]
    assert not check.held
    assert check.detail.startswith(f"{one} ")


def test_an_ema_in_bf16_stays_and_ours_moves(peers):
    found = by_name(peers.motion(peers.ALL, updates=2000))
    assert found["peers/bf16/moves"].held
    assert found["peers/bf16/motion/ema"].ratio.median > 0.8
    assert found["peers/bf16/motion/torch-ema"].ratio.median == 0
    assert "peers/bf16/motion/mean" not in found


def test_memory_counts_each_tensor_once_and_not_the_model(peers):
    parameters = peers.models.tiny().parameters()
    weights = sum(parameter.nbytes for parameter in parameters)
    for one, copies in {"ema": 1, "window": peers.WINDOW, "torch-ema": 1}.items():
        told, held, grown = peers.memory_of(one, quick=True)
        assert told == weights
        assert held == pytest.approx(copies * weights, rel=0.02), one
        assert grown >= 0
    before = peers._held()
    base = torch.zeros(1000)
    views = base.split(10)
    assert peers._held() - before == base.nbytes
    del views


def test_peak_growth_sees_memory_that_is_back(peers):
    peers.Path("/proc/self/clear_refs").write_text("5")
    before = peers._status("VmRSS")
    large = torch.ones(50_000_000)
    del large
    assert peers._status("VmHWM") - before > 150e6


def test_every_update_is_measured_and_ours_against_the_fastest_peer(peers):
    found = by_name(peers.updates("tiny", peers.models.tiny(), rounds=2))
    assert set(found) == {f"peers/update/{one}" for one in peers.ALL} | {
        f"peers/update/{one}/fastest" for one in peers.OURS
    }
    fastest = min(peers.PEERS, key=lambda one: found[f"peers/update/{one}"].parts[one].median)
    for one in peers.OURS:
        record = found[f"peers/update/{one}/fastest"]
        assert record.target == 1
        assert set(record.parts) == {one, fastest}
        assert record.ratio.values == [
            ours / its for ours, its in zip(*(record.parts[name].values for name in (one, fastest)), strict=True)
        ]


def test_a_hundred_updates_capture_once(peers, monkeypatch):
    """The share is of one capture in a hundred updates; the other contender's call captures nothing."""
    made = []
    real = peers.WeightAverager

    def making(*arguments, **settings):
        made.append(real(*arguments, **settings))
        return made[-1]

    monkeypatch.setattr(peers, "WeightAverager", making)
    calls = {}
    monkeypatch.setattr(
        peers, "interleave", lambda contenders, **_: calls.update(contenders) or {one: [1.0, 2.0] for one in contenders}
    )
    found = by_name(peers.share("tiny", peers.models.tiny(), context=16, rounds=2))
    due, idle = made
    before = due.steps()
    assert len(before) == peers.WINDOW
    calls["hundred"]()
    assert due.steps() == [*before[1:], before[-1] + 100]
    calls["idle"]()
    assert idle.count() == 0
    weight = next(due.model.parameters())
    untrained = weight.detach().clone()
    calls["step"]()
    assert not torch.equal(weight, untrained)
    assert found["peers/every-100/hundred"].ratio.median == 1 / 100
    assert found["peers/every-100/idle"].ratio.median == 1
