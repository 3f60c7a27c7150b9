"""The benchmark of averaging on disk: its checkpoints, its contenders, its ratios, and the picture of them."""

import importlib
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def load(benchmark_modules, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    yield importlib.import_module
    sys.modules.pop("charts", None)


@pytest.fixture
def data(load):
    return load("disk_data")


# ---- the checkpoints


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_checkpoints_are_llamas_with_finite_values_of_their_own(data, tmp_path: Path, dtype: str) -> None:
    case = data.Case(data.TINY, 3, dtype)
    made = data.make(tmp_path, case)
    assert [path.name for path in made] == ["step001000", "step002000", "step003000"]
    states = [load_file(path / "model.safetensors") for path in made]
    for state in states:
        assert {name: tuple(tensor.shape) for name, tensor in state.items()} == dict(case.size.shapes)
        assert {tensor.dtype for tensor in state.values()} == {getattr(torch, dtype)}
        assert all(tensor.isfinite().all() for tensor in state.values())
    assert sum(tensor.nbytes for state in states for tensor in state.values()) == case.nbytes
    first = [state["model.embed_tokens.weight"] for state in states]
    assert not torch.equal(first[0], first[1])
    assert first[0].float().abs().max() > 1


def test_transformers_has_these_tensors(data, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    [directory] = data.make(tmp_path, data.Case(data.TINY, 1))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory))
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == dict(data.TINY.shapes)


def test_sizes_are_those_that_the_issue_names(data) -> None:
    assert data.MEDIUM.parameters == pytest.approx(350e6, rel=0.01)
    assert data.Case(data.MEDIUM, 10).nbytes == pytest.approx(7.0e9, rel=0.01)
    assert data.Case(data.HUGE, 11).nbytes > 30e9


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_no_value_is_inf_or_nan(data, dtype: str) -> None:
    bits = data.random_values(dtype)
    wide = bits.astype(np.uint32) << 16 if dtype == "bfloat16" else bits
    assert np.isfinite(wide.view(np.float32)).all()


def test_checkpoints_that_are_there_stay(data, tmp_path: Path) -> None:
    first = [path.stat().st_ino for path in data.make(tmp_path, data.Case(data.TINY, 2))]
    more = [path.stat().st_ino for path in data.make(tmp_path, data.Case(data.TINY, 3))]
    assert more[:2] == first


# ---- the contenders


@pytest.fixture
def contenders(load):
    return load("disk_contenders")


@pytest.fixture
def inputs(data, tmp_path: Path) -> list[Path]:
    return data.make(tmp_path / "in", data.Case(data.TINY, 3))


def test_the_limit_reads_all_and_writes_so_many_copies(contenders, inputs: list[Path], tmp_path: Path) -> None:
    contenders.limit(inputs, tmp_path / "out", copies=2, sync=True)()
    contenders.limit(inputs, tmp_path / "out", copies=2)()  # the round before is removed
    written = sorted((tmp_path / "out").iterdir())
    assert len(written) == 2
    assert all(file.read_bytes() == (inputs[0] / "model.safetensors").read_bytes() for file in written)
    (inputs[2] / "model.safetensors").unlink()
    with pytest.raises(RuntimeError, match="step003000"):
        contenders.limit(inputs, tmp_path / "out")()


def test_the_engine_and_the_literal_sum_have_the_same_bits(load, data, contenders, inputs, tmp_path, capsys) -> None:
    disk, case = load("disk"), data.Case(data.TINY, 3)
    contenders.run_engine(inputs, tmp_path / "engine", window=None, sync=False)
    told = json.loads(capsys.readouterr().out)
    assert told["seconds"] > 0
    assert told["peak"] > 1e7
    contenders.run_whole(inputs, tmp_path / "whole")
    ours, literal = (tmp_path / name / "model.safetensors" for name in ("engine", "whole"))
    assert disk.same(case, ours, literal).held
    broken = bytearray(ours.read_bytes())
    broken[-1] ^= 1
    ours.write_bytes(broken)
    check = disk.same(case, ours, literal)
    assert not check.held
    assert check.detail == "lm_head.weight"


def test_every_window_of_the_engine_is_the_mean_of_its_own(contenders, inputs, tmp_path, capsys) -> None:
    contenders.run_engine(inputs, tmp_path / "engine", window=2, sync=True)
    for end in (1, 2):
        contenders.run_whole(inputs[end - 1 : end + 1], tmp_path / f"whole{end}")
        ours = load_file(tmp_path / "engine" / inputs[end].name / "model.safetensors")
        whole = load_file(tmp_path / f"whole{end}" / "model.safetensors")
        assert all(torch.equal(ours[name], whole[name]) for name in whole)
    assert len([*(tmp_path / "engine").iterdir()]) == 2


def test_a_process_is_watched_to_its_peak(contenders) -> None:
    small = contenders.process([sys.executable, "-c", "pass"])
    large = contenders.process([sys.executable, "-c", "import time; x = b'1' * 200_000_000; del x; time.sleep(0.1)"])
    assert large.peak - small.peak > 190e6
    assert small.peak < 50e6  # and not that of this process
    assert large.seconds > 0.1
    with pytest.raises(RuntimeError, match="no such thing"):
        contenders.process([sys.executable, "-c", "raise SystemExit('no such thing')"])


def test_mergekit_is_asked_for_the_same_average(contenders, inputs, tmp_path, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(contenders, "process", lambda command: asked.append(command))
    contenders.mergekit(inputs, tmp_path / "out", environment=Path("/venv"), dtype="bfloat16")()
    [[program, recipe, output, *_]] = asked
    assert (program, output) == ("/venv/bin/mergekit-yaml", str(tmp_path / "out"))
    told = json.loads(Path(recipe).read_text())
    assert [one["model"] for one in told["models"]] == [str(one) for one in inputs]
    assert (told["merge_method"], told["dtype"], told["out_dtype"]) == ("linear", "float32", "bfloat16")


# ---- ratios and room


def took(contenders, **seconds: list[float]):
    return {
        name.replace("_", ", "): [contenders.Taken(one, 10**9) for one in values] for name, values in seconds.items()
    }


def test_ratios_are_ours_over_theirs_in_the_same_round(load, contenders, data) -> None:
    disk, case = load("disk"), data.Case(data.MEDIUM, 10)
    rounds = took(contenders, limit=[1.0, 2.0], engine=[1.2, 2.2], limit_fsync=[2.0, 2.0], engine_fsync=[3.0, 3.0],
                  process=[2.0, 2.0], whole=[4.0, 8.0], mergekit=[10.0, 40.0])  # fmt: skip
    plain, synced = disk.against_limit(case, rounds, ""), disk.against_limit(case, rounds, ", fsync")
    assert plain.ratio.values == pytest.approx([1.2, 1.1])
    assert plain.target == 1.3
    assert synced.ratio.values == [1.5, 1.5]
    whole = disk.against(case, rounds, "whole", 1.5)
    assert (whole.ratio.values, whole.target) == ([0.5, 0.25], pytest.approx(2 / 3))
    assert disk.against(case, rounds, "mergekit", 3).ratio.values == pytest.approx([0.2, 0.05])
    ours, theirs = (disk.memory(case, name, rounds[name]) for name in ("process", "whole"))
    assert ours.ratio.median == 2.0
    assert (ours.target, theirs.target) == (1.0, None)


def test_where_there_is_no_room_a_case_is_left_out(load, data, tmp_path, monkeypatch, capsys) -> None:
    disk = load("disk")
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 7e9}))
    assert disk.in_its_folder(tmp_path, data.Case(data.MEDIUM, 10), lambda inputs, out: [1 / 0]) == []
    assert "left out" in capsys.readouterr().err
    assert not [*tmp_path.rglob("*.safetensors")]


def test_only_the_checkpoints_of_one_case_are_on_disk(load, data, tmp_path) -> None:
    disk = load("disk")
    counts = []

    def run(inputs, out):
        counts.append((len(inputs), len([*tmp_path.rglob("*.safetensors")])))
        return []

    for case in (data.Case(data.TINY, 4), data.Case(data.TINY, 2), data.Case(data.TINY, 3, "float32")):
        disk.in_its_folder(tmp_path, case, run)
    assert counts == [(4, 4), (2, 4), (3, 3)]
    assert not (tmp_path / "outputs").exists()


# ---- the picture


@pytest.fixture
def described(load, contenders, data):
    """Made-up records of the benchmark's own cases: ours takes a second a checkpoint, mergekit ten."""
    disk, measure = load("disk"), load("measure")
    found = []
    for case in disk.CASES:
        n = case.count
        rounds = took(contenders, limit=[n, n], engine=[n, 1.2 * n], limit_fsync=[n, n], engine_fsync=[n, n],
                      process=[n + 1, n + 2], whole=[5 * n, 5 * n], mergekit=[10 * n, 11 * n])  # fmt: skip
        found += [disk.against_limit(case, rounds, suffix) for suffix in ("", ", fsync")]
        found += [disk.against(case, rounds, other, 2.0) for other in ("whole", "mergekit")]
        found += [disk.memory(case, name, rounds[name]) for name in ("engine", *disk.OTHERS)]
    return json.loads(json.dumps(measure.describe("disk", found)))


def test_the_picture_has_every_contender_along_both_axes(load, described) -> None:
    charts = load("charts")
    seconds, peaks = charts.collect(described, memory=False), charts.collect(described, memory=True)
    assert set(seconds) == set(charts.WHO)
    assert set(peaks) == set(charts.WHO) - {"limit"}
    fixed = charts.most_common(seconds)
    assert fixed == charts.Case(10, 348)
    by_count, by_size = charts.along(seconds, "count", fixed), charts.along(seconds, "millions", fixed)
    assert {who: list(one) for who, one in by_count.items()} == {who: [5, 10, 20] for who in charts.WHO}
    assert {who: list(one) for who, one in by_size.items()} == {who: [134, 348, 778] for who in charts.WHO}
    assert by_count["mergekit"][20].median == 210
    assert by_count["process"][5].least == 6
    assert charts.along(peaks, "count", fixed)["engine"][10].median == 1e9


def test_a_picture_tells_the_records_it_was_drawn_from(load, described, tmp_path, monkeypatch) -> None:
    document = load("document")
    monkeypatch.setattr(document, "DISK", tmp_path / "disk.png")
    try:
        assert document.draw([], check=True)
        assert "Not on record" in document.disk([])
        assert not document.draw([described], check=True)
        assert document.draw([described], check=False)
        assert document.draw([described], check=True)
        assert document.disk([described]) == ("![Seconds and peak memory of averaging checkpoints on disk](disk.png)")
        drawn = (tmp_path / "disk.png").read_bytes()
        assert drawn.startswith(b"\x89PNG")
        other = {**described, "records": described["records"][1:]}
        assert not document.draw([other], check=True)
        document.draw([other], check=False)
        assert (tmp_path / "disk.png").read_bytes() != drawn
    finally:
        sys.modules.pop("document", None)


def test_without_mergekit_the_others_are_drawn(load, described) -> None:
    charts = load("charts")
    fewer = [one for one in described["records"] if "mergekit" not in one["name"]]
    assert set(charts.collect({**described, "records": fewer}, memory=False)) == set(charts.WHO) - {"mergekit"}
    assert len(charts.picture({**described, "records": fewer})) > 10_000


def test_a_large_job_is_larger_than_memory_taken_once_and_asked_for(load, data, tmp_path, monkeypatch) -> None:
    disk = load("disk")
    asked = []
    monkeypatch.setattr(disk, "in_its_folder", lambda folder, case, run, **_: run([case], tmp_path))
    monkeypatch.setattr(disk, "rolling", lambda case, *_: [])

    def one_case(case, inputs, out, rounds, *, environment, cached=True):
        if not cached:
            asked.append((case, rounds))
        return []

    monkeypatch.setattr(disk, "one_case", one_case)
    disk.measure(tmp_path, quick=True, environment=None, large=False)
    assert asked == []
    disk.measure(tmp_path, quick=True, environment=None, large=True)
    [(case, rounds)] = asked
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert case.nbytes > max(30e9, 1.2 * memory)
    assert rounds == 1
