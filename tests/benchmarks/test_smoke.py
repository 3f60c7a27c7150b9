"""Every benchmark runs and writes records that can be read; how to measure is tested on made-up times."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def measure(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import measure

    yield measure
    del sys.modules["measure"]


def run(script, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *arguments], capture_output=True, text=True, env=environment
    )


def check(described):
    """A description that somebody else can judge and reproduce."""
    assert described["records"]
    for record in described["records"]:
        values = [record["ratio"], *record["parts"].values()]
        assert all(math.isfinite(x) and x >= 0 for value in values for x in value["values"]), record["name"]
        assert record["ratio"]["least"] <= record["ratio"]["median"] <= record["ratio"]["most"]
        assert record["n"] == len(record["ratio"]["values"]) >= 1
        assert record["question"]
    names = [one["name"] for one in described["records"] + described["checks"]]
    assert len(names) == len(set(names))
    assert all(one["held"] for one in described["checks"]), described["checks"]
    assert described["versions"]["torch"] != "not installed"
    assert described["threads"] == 1
    assert described["machine"]["processor"]


@pytest.mark.slow
def test_every_benchmark_runs(tmp_path):
    done = run("run.py", "--quick", "--output", str(tmp_path / "cpu.json"))
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "cpu.json").read_text())["benchmarks"]
    names = ["startup", "capture", "average", "peers", "ranks", "share", "checkpoint", "start", "readers", "disk"]
    assert [described["benchmark"] for described in written] == names
    for described in written:
        check(described)
        assert described["quick"]
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + sum(len(described["records"]) for described in written)


@pytest.mark.slow
def test_the_gpu_benchmark_runs_dry(tmp_path):
    done = run("gpu.py", "--device", "cpu", "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    described = json.loads((tmp_path / "gpu.json").read_text())
    check(described)
    assert {record["name"].split("/")[1] for record in described["records"]} == {"stall", "memory", "tokens", "average"}
    assert {one["name"].split("/")[1] for one in described["checks"]} == {"sync", "tearing", "bits", "average"}
    assert (tmp_path / "gpu.md").read_text().startswith("| question |")


@pytest.mark.slow
@pytest.mark.skipif("__import__('torch').cuda.is_available()")
def test_without_a_gpu_it_says_so(tmp_path):
    done = run("gpu.py", "--output", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "needs a CUDA GPU" in done.stderr


def test_contenders_take_turns_and_warm_up(measure):
    order = []
    contenders = {name: lambda name=name: order.append(name) or len(order) for name in "abc"}
    values = measure.alternate(contenders, rounds=3, warmup=1)
    assert "".join(order) == "cab" + "abc" + "bca" + "cab"
    assert values == {"a": [4, 9, 11], "b": [5, 7, 12], "c": [6, 8, 10]}


def test_short_contenders_are_called_several_times_a_turn(measure, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])

    def call():
        clock[0] += 0.25

    seconds = measure.interleave({"quarter": call}, rounds=2, warmup=1, least=1.0)
    assert seconds == {"quarter": [0.25, 0.25]}
    assert clock[0] == 0.25 * (1 + 4 + 4)


def test_a_ratio_is_taken_within_its_round(measure):
    ratio = measure.over([2.0, 30.0, 4.0], [1.0, 10.0, 2.0])
    assert (ratio.median, ratio.least, ratio.most) == (2.0, 2.0, 3.0)
    assert measure.over([2.0], [1.0], times=4).median == 0.5


def test_a_row_shows_spread_target_and_n(measure):
    def row(median, **more):
        spread = measure.Spread(median=median, least=1.0, most=2.5, values=[])
        return measure.row(measure.Record(name="x", question="q", ratio=spread, n=7, **more))

    assert row(1.0379, target=1.1) == "| q | 1.04 (1.00 – 2.50) | ≤ 1.10 | 7 |"
    assert row(1.2, target=1.1, note="why") == "| q; why | 1.20 (1.00 – 2.50) | ≤ 1.10, missed | 7 |"
    assert row(27.31, target=None) == "| q | 27.3 (1.00 – 2.50) |  | 7 |"
    assert measure.number(0.00482, "%") == "0.482 %"


def test_a_description_is_read_back(measure):
    found = [
        measure.Record(
            name="r", question="q", ratio=measure.Spread.of([1.0, 2.0]), target=None, n=2,
            parts={"a": measure.Spread.of([3.0])},
        ),
        measure.Check(name="c", claim="holds", held=False),
    ]  # fmt: skip
    assert measure.read_found(json.loads(json.dumps(measure.describe("x", found)))) == found


def test_a_failed_check_is_the_exit_code(measure, capsys):
    described = measure.describe("x", [measure.Check(name="c", claim="one is two", held=False)])
    with pytest.raises(SystemExit) as ended:
        measure.finish(described, None)
    assert ended.value.code == 1
    assert "**does not hold**: one is two" in capsys.readouterr().out
