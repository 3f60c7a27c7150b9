"""Checkpoints of a trajectory: pinned, within a budget, again from the cache, and what is refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from time import sleep

import huggingface_hub.constants as constants
import pytest
import torch

from hub_server import Fault, Hub, serving
from lawa.checkpoints import formats, hub_parts
from lawa.errors import LawaError
from lawa.trajectories.fetch import Fetcher, Planned
from trajectories import replicas
from trajectories.hubs import AMBER, PYTHIA, amber_like, blobs_of, cache_of, pythia_like


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    repos = {PYTHIA: dict(replicas.pythia()), AMBER: dict(replicas.amber())}
    with serving(repos, tmp_path / "cache", monkeypatch) as served:
        yield served


def bytes_of(*revisions: str) -> int:
    """Of the weights, configuration and tokenizer of Pythia's revisions."""
    files = [replicas.pythia()[revision] for revision in revisions]
    return sum(len(content) for one in files for name, content in one.items() if name != "README.md")


def test_the_replicas_are_what_transformers_loads(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    for repo, revision in [("pythia", "step2000"), ("pythia", "step2"), ("pythia", "step4000"), ("amber", "ckpt_000")]:
        folder = tmp_path / f"{repo}-{revision}"
        folder.mkdir()
        for name, content in getattr(replicas, repo)()[revision].items():
            (folder / name).write_bytes(content)
        model, told = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        assert not any(told.values())
        drawn = (
            replicas.amber_tensors(0) if repo == "amber" else replicas.pythia_tensors(int(revision[4:]), model.dtype)
        )
        assert torch.equal(model.get_input_embeddings().weight, next(iter(drawn.values())))


def test_a_plan_tells_step_revision_commit_and_bytes_and_fetches_nothing(there: Hub) -> None:
    with Fetcher(pythia_like()) as fetcher:
        planned = fetcher.plan([2000, 1000])
    assert planned == [
        Planned(step, f"step{step}", there.commit(PYTHIA, f"step{step}"), bytes_of(f"step{step}"))
        for step in (2000, 1000)
    ]
    assert there.fetched() == []


def test_steps_are_fetched_whole_and_in_the_order_asked_for(there: Hub) -> None:
    seen = []
    fetcher = Fetcher(pythia_like(), progress=lambda *told: seen.append(told))
    found = fetcher.fetch([2000, 0, 1, 2])
    assert list(found) == [2000, 0, 1, 2]
    assert found[0] == found[1] != found[2]
    for step, path in found.items():
        for name, content in replicas.pythia()[f"step{step}"].items():
            assert (path / name).is_file() == (name != "README.md")
            assert name == "README.md" or (path / name).read_bytes() == content
    assert formats.look(found[2000]).name == "hf"
    total = bytes_of("step2000", "step0", "step1", "step2")
    assert seen[-1] == ("bytes fetched", total, total)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    there.requests.clear()
    assert fetcher.fetch([2000, 0, 1, 2]) == found
    assert there.requests == []


def test_an_amber_is_fetched_by_its_own_names(there: Hub) -> None:
    found = Fetcher(amber_like()).fetch([762, 5 * 762])
    for step, revision in [(762, "ckpt_000"), (5 * 762, "main")]:
        name = "pytorch_model-00002-of-00002.bin"
        assert (found[step] / name).read_bytes() == replicas.amber()[revision][name]


def test_offline_everything_comes_again_from_the_cache(there: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Fetcher(pythia_like()).fetch([1000, 2000])
    there.requests.clear()
    offline = Fetcher(pythia_like(), offline=True)
    assert offline.fetch([1000, 2000]) == found
    assert [one.bytes for one in offline.plan([1000])] == [bytes_of("step1000")]
    with pytest.raises(LawaError, match=r"the hub is not asked .*org/pythia-tiny@step2 is not in its cache"):
        offline.fetch([2])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert Fetcher(pythia_like()).fetch([2000]) == {2000: found[2000]}
    assert there.requests == []
    shard = found[2000] / "pytorch_model-00002-of-00002.bin"
    shard.unlink()
    with pytest.raises(LawaError, match=r"is not whole in the cache \(.* has no pytorch_model-00002-of-00002\.bin\)"):
        Fetcher(pythia_like()).fetch([2000])


def test_a_revision_that_moves_between_two_calls_stays_pinned(there: Hub) -> None:
    fetcher = Fetcher(pythia_like())
    [planned] = fetcher.plan([1000])
    there.move(PYTHIA, "step1000", replicas.pythia()["step4000"])
    [path] = fetcher.fetch([1000]).values()
    assert path.name == planned.commit != there.commit(PYTHIA, "step1000")
    assert (path / "pytorch_model.bin").read_bytes() == replicas.pythia()["step1000"]["pytorch_model.bin"]
    assert Fetcher(pythia_like(), offline=True).plan([1000]) == [planned]
    assert Fetcher(pythia_like()).plan([1000])[0].commit == there.commit(PYTHIA, "step1000")


def test_steps_that_are_not_there_and_bad_ones_are_refused_by_name(there: Hub) -> None:
    bad = pythia_like(bad={1000: "it holds main's weights, pythia issue 205"})
    with pytest.raises(LawaError, match=r"pythia-tiny has no checkpoint of update 1500; .*1000 and 2000"):
        Fetcher(bad).plan([1500])
    with pytest.raises(LawaError, match=r"pythia-tiny step1000 is known to be wrong \(it holds main's .*--allow-bad"):
        Fetcher(bad).fetch([2000, 1000])
    assert there.fetched() == []
    assert list(Fetcher(bad, allow_bad=True).fetch([1000])) == [1000]
    del there.repos[PYTHIA]["step2"]
    with pytest.raises(LawaError, match=r"org/pythia-tiny has no revision 'step2'"):
        Fetcher(bad).fetch([2])


def test_equal_files_are_refused_before_anything_is_fetched(there: Hub) -> None:
    run = pythia_like(0, 1, 1000, 2000, 5000, 3000)
    with pytest.raises(
        LawaError, match=r"^pythia-tiny: step1000 and step5000 have the same weights \(SHA-256 .*--allow-duplicates$"
    ):
        Fetcher(run).fetch([1000, 2000, 5000])
    fetcher = Fetcher(run)
    fetcher.fetch([1000])
    with pytest.raises(LawaError, match="step1000 and step5000 have the same weights"):
        fetcher.fetch([5000])
    assert set(there.fetched()) == {"config.json", "pytorch_model.bin", "tokenizer.json"}
    assert list(Fetcher(run, allow_duplicates=True).fetch([1000, 5000])) == [1000, 5000]
    assert list(Fetcher(run).fetch([0, 1])) == [0, 1]
    with pytest.raises(LawaError, match="step0 and step1 have the same weights"):
        Fetcher(replace(run, same=())).fetch([0, 1])


def test_a_step_with_the_last_ones_weights_is_refused_though_that_was_not_asked_for(there: Hub) -> None:
    with pytest.raises(LawaError, match=r"step1000 and step5000 have the same weights .*; known: as main is"):
        Fetcher(pythia_like(1000, 2000, 5000, bad={1000: "as main is"}), allow_bad=True).plan([1000])
    there.repos[PYTHIA]["step5000"] = {
        **replicas.pythia()["step2000"],
        "pytorch_model-00002-of-00002.bin": replicas.bin_file(replicas.pythia_tensors(7)),
    }
    with pytest.raises(LawaError, match=r"step2000 and step5000 have the same pytorch_model-00001-of-00002\.bin "):
        Fetcher(pythia_like(1000, 2000, 5000)).plan([2000])


def test_equal_tensors_in_other_files_are_refused_once_they_are_here(there: Hub) -> None:
    there.repos[PYTHIA]["step2"] = {
        **replicas.pythia()["step2"],
        **replicas.sharded(replicas.pythia_tensors(3000), 3),
    }
    del there.repos[PYTHIA]["step2"]["pytorch_model.bin"]
    run = pythia_like(2, 1000, 2000, 3000, 4000, 6000)
    fetcher = Fetcher(run)
    fetcher.fetch([1000, 2000, 4000])
    with pytest.raises(LawaError, match="step1000 and step6000 have the same tensors, in other files"):
        fetcher.fetch([6000])
    with pytest.raises(LawaError, match="step2 and step3000 have the same tensors, in other files"):
        Fetcher(run).fetch([2, 3000])
    assert list(Fetcher(run, allow_duplicates=True).fetch([1000, 6000])) == [1000, 6000]


def test_weights_that_the_hub_keeps_without_a_digest_are_compared_once_they_are_here(
    there: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hub_server._lfs", lambda name, content: {})
    with pytest.raises(LawaError, match=r"step1000 and step5000 have the same weights"):
        Fetcher(pythia_like(1000, 2000, 5000)).fetch([1000, 5000])


def test_a_budget_is_looked_at_before_anything_is_fetched(there: Hub) -> None:
    most = bytes_of("step1000") + bytes_of("step2000") - 1
    with (
        Fetcher(pythia_like(), budget=most) as fetcher,
        pytest.raises(LawaError, match=r"2 checkpoints need .* GB more on disk, .* budget of .*; allow at least"),
    ):
        fetcher.fetch([1000, 2000])
    assert there.fetched() == []


def test_fetch_use_evict_stays_within_the_budget(there: Hub) -> None:
    budget = bytes_of("step1000") + bytes_of("step2000")
    with Fetcher(pythia_like(), budget=budget) as fetcher:
        paths = fetcher.fetch([1000, 2000])
        with pytest.raises(LawaError, match="1 checkpoints need"):
            fetcher.fetch([3000])
        fetcher.evict(1000)
        assert not paths[1000].exists()
        assert not (cache_of(PYTHIA) / "refs" / "step1000").exists()
        paths |= fetcher.fetch([3000])
        assert sum(blobs_of(PYTHIA).values()) <= budget
        assert (paths[2000] / "config.json").read_bytes() == replicas.pythia()["step1000"]["config.json"]
        fetcher.evict(2000)
        fetcher.evict(3000)
        assert blobs_of(PYTHIA) == {}
        again = fetcher.fetch([1000])
        assert again == {1000: paths[1000]}
        assert (again[1000] / "pytorch_model.bin").is_file()


def test_blobs_that_snapshots_share_count_once_and_stay_until_the_last(there: Hub) -> None:
    there.repos[PYTHIA]["step1"] = {**replicas.pythia()["step1"], "config.json": b"{}"}  # another commit, same weights
    with Fetcher(pythia_like(), budget=bytes_of("step0") + 100) as fetcher:
        paths = fetcher.fetch([0, 1])
        assert paths[0] != paths[1]
        fetcher.evict(0)
        assert not paths[0].exists()
        assert (paths[1] / "pytorch_model.bin").read_bytes() == replicas.pythia()["step1"]["pytorch_model.bin"]
        fetcher.evict(1)
        assert blobs_of(PYTHIA) == {}


def test_what_was_in_the_cache_before_is_not_counted_and_not_evicted_unless_asked(there: Hub) -> None:
    Fetcher(pythia_like()).fetch([1000])
    with Fetcher(pythia_like(), budget=bytes_of("step2000")) as fetcher:
        paths = fetcher.fetch([1000, 2000])
        fetcher.evict(1000)
        assert (paths[1000] / "pytorch_model.bin").is_file()
        fetcher.evict(1000, every=True)
        assert not paths[1000].exists()
        assert (paths[2000] / "config.json").is_file()


def test_files_that_other_snapshots_had_before_are_not_counted(there: Hub) -> None:
    Fetcher(pythia_like()).fetch([1000])
    had = sum(len(replicas.pythia()["step1000"][name]) for name in ("config.json", "tokenizer.json"))
    with Fetcher(pythia_like(), budget=bytes_of("step2000", "step3000") - had) as fetcher:
        fetcher.fetch([2000])
        assert list(fetcher.fetch([3000])) == [3000]


def test_what_is_on_its_way_counts(there: Hub) -> None:
    there.faults.append(Fault(r"GET .*pytorch_model\.bin", pause=1))
    with Fetcher(pythia_like(), budget=bytes_of("step1000") + 50_000) as fetcher, ThreadPoolExecutor(1) as pool:
        first = pool.submit(fetcher.fetch, [1000])
        while "pytorch_model.bin" not in there.fetched():
            assert not first.done()
            sleep(0.005)
        with pytest.raises(LawaError, match="1 checkpoints need"):
            fetcher.fetch([2000])
        there.closed.set()
        assert list(first.result()) == [1000]


def test_what_a_killed_process_left_counts_and_goes_first(there: Hub) -> None:
    budget = bytes_of("step1000") + bytes_of("step2000")
    left = Fetcher(pythia_like(), budget=budget)
    before = left.fetch([1000, 2000])
    left.close()
    ended, digest = cache_of(PYTHIA) / "blobs", 64 * "0"
    partial = ended / f"{digest}.lawa.incomplete"
    partial.write_bytes(bytes(10_000))
    hub_parts.journal_of(partial).write_text("{}\n")
    with Fetcher(pythia_like(), budget=budget) as fetcher:
        assert fetcher.fetch([2000]) == {2000: before[2000]}
        assert partial.exists()
        fetcher.fetch([3000])
        assert not partial.exists()
        assert not hub_parts.journal_of(partial).exists()
        assert not before[1000].exists()
        assert (before[2000] / "config.json").is_file()
        assert sum(blobs_of(PYTHIA).values()) <= budget


def test_two_that_work_at_once_do_not_take_over_from_each_other(there: Hub) -> None:
    with Fetcher(pythia_like(), budget=10**9) as one:
        [path] = one.fetch([1000]).values()
        with Fetcher(pythia_like(), budget=bytes_of("step2000")) as other:
            other.fetch([2000])
            other.evict(1000)
        assert (path / "pytorch_model.bin").is_file()


def test_a_run_on_disk_is_taken_where_it_lies(tmp_path: Path) -> None:
    folders = {step: tmp_path / f"step{step:08}" for step in (2, 4)}
    for folder in folders.values():
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(bytes(8))
    run = replace(pythia_like(2, 4), repo=str(tmp_path), folders=folders)
    with Fetcher(run, budget=1) as fetcher:
        assert fetcher.plan([4]) == [Planned(4, "step00000004", "", 8)]
        assert fetcher.fetch([4, 2]) == {4: folders[4], 2: folders[2]}
        fetcher.evict(4)
    assert folders[4].is_dir()
