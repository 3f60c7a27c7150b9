"""The shards that are measured are those of 1, 2 and 4 ranks."""

import importlib

import pytest


@pytest.mark.slow
def test_four_processes_and_three_meshes(benchmark_modules):
    ranks = importlib.import_module("ranks")
    told = ranks.launch(2, quick=True)
    assert told["share"] == {"1": 1, "2": pytest.approx(0.5, abs=0.01), "4": pytest.approx(0.25, abs=0.01)}
    for what in ("held", "swap"):
        whole = told["bytes"]["1"][what]
        assert told["bytes"]["2"][what] / whole == pytest.approx(0.5, abs=0.02)
        assert told["bytes"]["4"][what] / whole == pytest.approx(0.25, abs=0.02)
    assert set(told["seconds"]) == {f"{what} {count}" for what in ranks.QUESTIONS for count in (1, 2, 4)}
    assert all(len(values) == 2 and min(values) > 0 for values in told["seconds"].values())


def test_a_ratio_is_taken_to_the_whole_model_in_the_same_round(benchmark_modules, monkeypatch):
    ranks = importlib.import_module("ranks")
    seconds = {f"{what} {count}": [1.0 / count, 3.0 / count] for what in ranks.QUESTIONS for count in (1, 2, 4)}
    numbers = {str(count): {"held": 800 // count, "swap": 80 // count} for count in (1, 2, 4)}
    share = {str(count): 1 / count for count in (1, 2, 4)}
    told = {"size": "1 in 1", "seconds": seconds, "bytes": numbers, "share": share}
    monkeypatch.setattr(ranks, "launch", lambda rounds, *, quick: told)
    found = {one.name: one for one in ranks.measure(True)}
    assert set(found) == {f"ranks/{n}/{what}" for n in (2, 4) for what in ("held", "swap", *ranks.QUESTIONS)}
    for name, record in found.items():
        count = int(name.split("/")[1])
        assert set(record.ratio.values) == {1 / count}
        assert record.target == (None if name.endswith("copy") else pytest.approx(1.1 / count))
