"""What is registered: names, revisions, sizes and rates against the public runs' own numbers and literal formulas."""

import math
import subprocess
import sys

import pytest

from lawa.errors import LawaError, UsageError
from lawa.trajectories import registry
from lawa.trajectories.registry import find, names

EVERY = names()
PYTHIA = [name for name in EVERY if name.startswith("pythia-")]
PEAKS = {
    "14m": 1e-3, "31m": 1e-3, "70m": 1e-3, "160m": 6e-4, "410m": 3e-4, "1b": 2.5e-4, "1.4b": 2e-4, "2.8b": 1.6e-4,
    "6.9b": 1.2e-4, "12b": 1.2e-4,
}  # fmt: skip
SHARDS = [f"document-{i:05}-of-00020.bin" for i in range(21)]


def test_these_are_registered():
    deduped = [f"pythia-{size}-deduped" for size in PEAKS if size not in ("14m", "31m")]
    seeds = [f"pythia-{size}-seed{seed}" for size in ("14m", "31m", "70m", "160m", "410m") for seed in range(1, 10)]
    parts = [f"pythia-160m-{part}-seed{seed}" for part in ("data", "weight") for seed in (1, 2, 3)]
    assert {*PYTHIA} == {*(f"pythia-{size}" for size in PEAKS), *deduped, *seeds, *parts}
    assert {*EVERY} - {*PYTHIA} == {
        "amber", "k2", "k2-stage2", "k2-spike-1", "k2-spike-2", "crystal-phase1", "crystal-phase2", "crystal-phase3",
        "olmo-1b", "olmo-7b", "olmo-2-1b", "olmo-2-7b", "olmo-2-13b", "olmo-2-32b",
    }  # fmt: skip


@pytest.mark.parametrize("name", EVERY)
def test_every_step_has_one_revision_that_tells_it(name):
    run = find(name)
    revisions = [run.revision(step) for step in run.steps]
    assert [run.step(revision) for revision in revisions] == list(run.steps) == sorted({*run.steps})
    assert len({*revisions}) == len(revisions)
    listed = ["main", "refs/pr/1", "step-1", *revisions]
    assert [run.revision(step, listed) for step in run.steps[:9]] == revisions[:9]


@pytest.mark.parametrize("name", EVERY)
def test_what_is_told_of_a_run_fits_together(name):
    run = find(name)
    steps = {*run.steps}
    assert steps <= {*range(run.total + 1)}
    assert {*run.bad} <= steps
    assert run.main is None or run.main in steps
    assert all(run.step(revision) in steps for group in run.same for revision in group)
    assert run.data is None or run.batch * run.context > 0
    assert run.optimizer is None or run.optimizer["steps"] is None or {*run.optimizer["steps"]} <= steps
    if run.training:
        rates = [run.rate(t) for t in (1, run.training["warmup"] + 1, run.total)]
        assert max(rates) == rates[1] == pytest.approx(run.training["lr"], rel=1e-4)
        assert (run.training["updates"], run.training["batch"]) == (run.total, run.batch)


@pytest.mark.parametrize("name", PYTHIA)
def test_pythia_has_154_revisions_and_300_billion_tokens(name):
    run = find(name)
    assert run.repo == f"EleutherAI/{name}"
    assert list(run.steps) == [0, *(2**i for i in range(10)), *range(1000, 143_001, 1000)]
    assert [run.revision(step) for step in (0, 512, 143_000)] == ["step0", "step512", "step143000"]
    assert run.tokens(143_000) == 299_892_736_000
    assert (run.step("main"), run.step("step12"), run.step("step1000-tokens2B")) == (143_000, 12, None)
    size = name.split("-")[1]
    training = run.training
    assert (training["lr"], training["min_lr"]) == (PEAKS[size], pytest.approx(PEAKS[size] / 10))
    assert (training["beta1"], training["beta2"], training["eps"], training["clip"]) == (0.9, 0.95, 1e-8, 1.0)
    assert (training["weight_decay"], training["decays"], training["warmup"]) == (0.1, "matrices", 1430)
    assert training["precision"] == ("bf16" if size == "1b" else "fp16")
    assert run.vocab_size == {"6.9b": 50432, "12b": 50688}.get(size, 50304)
    assert run.vocab_size % 128 == 0


@pytest.mark.parametrize("size", PEAKS)
def test_pythias_rate_is_that_of_neox_1_0(size):
    """Update t uses s = t − 1."""
    run, peak = find(f"pythia-{size}"), PEAKS[size]
    assert run.rate(1) == 0.0
    assert run.rate(1431) == peak
    for s in (1431, 72_000, 115_138):
        assert run.rate(s + 1) == pytest.approx(peak / 2 * (math.cos(math.pi * (s - 1430) / 143_000) + 1), rel=1e-12)
    assert run.rate(115_139) > peak / 10
    assert run.rate(115_140) == pytest.approx(peak / 10, rel=1e-12)
    assert run.rate(100_001) == pytest.approx(0.220 * peak, rel=2e-3)
    assert run.rate(143_000) == pytest.approx(peak / 10, rel=1e-12)
    with pytest.raises(LawaError, match=rf"pythia-{size} has no update 143001: its updates are 1 … 143000"):
        run.rate(143_001)


def test_the_other_cosine_can_be_chosen():
    run = find("pythia-14m-seed1")
    other = run.scheduled("neox-2023-cosine")
    assert other.rate(100_001) == pytest.approx(0.290 * 1e-3, rel=2e-3)
    assert run.rate(100_001) == pytest.approx(0.220 * 1e-3, rel=2e-3)
    assert any("neox-2023-cosine" in note for note in run.notes)
    with pytest.raises(LawaError, match=r"no schedule 'neox-2023-cosin'; did you mean neox-2023-cosine\?"):
        run.scheduled("neox-2023-cosin")


def test_pythias_data_and_optimizer_states():
    standard, deduped, seed = find("pythia-160m").data, find("pythia-160m-deduped").data, find("pythia-70m-seed3").data
    assert standard == {
        "kind": "preshuffled", "repo": "EleutherAI/pile-standard-pythia-preshuffled", "files": SHARDS,
        "index": "document.idx", "dtype": "uint16",
    }  # fmt: skip
    assert deduped == {**standard, "repo": "EleutherAI/pile-deduped-pythia-preshuffled"}
    assert (seed["kind"], seed["doc_idx"]) == ("documents", "seed3/*_3s_doc_idx.npy")
    assert len(seed["tokens"]["files"]) == 133
    assert find("pythia-70m-seed9").data is None
    assert find("pythia-160m-data-seed2").data["shuffle_idx"] == "seed2/*_2s_shuffle_idx.npy"
    assert find("pythia-160m-weight-seed2").data == standard
    states = {name: find(name).optimizer for name in ("pythia-160m", "pythia-410m-seed8", "pythia-1b-deduped")}
    assert {name: one["repo"] for name, one in states.items()} == {
        "pythia-160m": "EleutherAI/neox-ckpt-pythia-160m",
        "pythia-410m-seed8": "EleutherAI/neox-ckpt-pythia-410m-seed8",
        "pythia-1b-deduped": "EleutherAI/neox-ckpt-pythia-1b-deduped-v1",
    }
    assert states["pythia-160m"]["steps"] is None, "not known"
    assert states["pythia-410m-seed8"]["steps"] == find("pythia-410m-seed8").steps
    assert (states["pythia-1b-deduped"]["steps"], states["pythia-1b-deduped"]["revisions"]) == ((143_000,), "main")


def test_known_bad_revisions():
    bad = find("pythia-2.8b").bad
    assert len(bad) == 76 + 10 - 1, "86 revisions hold two sets of weights, of which step143000's are right"
    assert {0, 1, 512, 1000, 53_000, 54_000, 64_000, 140_000} <= {*bad}
    assert not {65_999, 66_000, 142_000, 143_000} & {*bad}
    assert "issues 195, 205" in bad[0]
    assert find("pythia-2.8b").same == [], "where nothing rightly equals anything"
    assert find("pythia-160m").same == [["step0", "step1", "step2"], ["step143000", "main"]]
    assert [*find("pythia-12b").bad] == [50_000, 58_000]
    assert {name: [*find(name).bad] for name in PYTHIA if "410m-seed" in name and find(name).bad} == {
        "pythia-410m-seed2": [111_000], "pythia-410m-seed6": [88_000], "pythia-410m-seed9": [40_000],
    }  # fmt: skip
    assert [*find("olmo-2-7b").bad] == [101_000, 175_000, 300_000]


def test_amber_is_counted_in_chunks():
    run = find("amber")
    assert (run.interval, run.total, len(run.steps)) == (1_706_976 // 2240, 762 * 360, 360)
    assert [run.revision(762 * (i + 1)) for i in (0, 7, 358, 359)] == ["ckpt_000", "ckpt_007", "ckpt_358", "main"]
    assert (run.step("ckpt_000"), run.step("ckpt_359"), run.step("main")) == (762, 274_320, 274_320)
    assert run.tokens(274_320) == 274_320 * 2240 * 2048
    assert (run.training["decays"], run.data["examples"], run.data["files"][359]) == (
        "all", 1_706_976, "train/train_359.jsonl",
    )  # fmt: skip


@pytest.mark.parametrize("name", ["amber", "k2"])
def test_the_rate_of_llm360_is_a_cosine_of_the_updates_before(name):
    """amber-train's get_cosine_lr_decay_fn, and Megatron's as k2-train sets it: step s = t − 1, to the letter."""
    run = find(name)
    total, peak, end = run.total, run.training["lr"], run.training["min_lr"]

    def literal(step):
        if step < 2000:
            return peak * step / 2000
        ratio = (step - 2000) / (total - 2000)
        return end + 0.5 * (1.0 + math.cos(math.pi * ratio)) * (peak - end)

    for t in (1, 2, 2000, 2001, 2002, 100_000, total):
        assert run.rate(t) == pytest.approx(literal(t - 1), rel=1e-12), t


def test_k2_and_its_spikes_are_counted_in_941_updates():
    run = find("k2")
    assert (run.total, len(run.steps), run.revision(338_760), run.revision(941 * 7)) == (
        941 * 360, 360, "ckpt_360", "ckpt_007",
    )  # fmt: skip
    assert [find("k2-spike-2").revision(step) for step in find("k2-spike-2").steps] == [
        f"spike_ckpt_{number}" for number in range(186, 201, 2)
    ]
    assert find("k2-spike-1").step("spike_ckpt_164") == 941 * 164
    stage2 = find("k2-stage2")
    assert stage2.revision(370, ["main", "ministage2_ckpt_370", "ckpt_370"]) == "ministage2_ckpt_370"
    with pytest.raises(LawaError, match="the learning rate of k2-stage2 is not known; tell its training in a YAML"):
        stage2.rate(1)
    with pytest.raises(LawaError, match="the tokens of an update of k2-stage2 are not known; tell its batch and cont"):
        stage2.tokens(1)


@pytest.mark.parametrize(
    ("name", "revision"),
    [
        ("olmo-2-1b", "stage1-step10000-tokens21B"),
        ("olmo-2-1b", "stage1-step140000-tokens294B"),
        ("olmo-2-1b", "stage1-step1907359-tokens4001B"),
        ("olmo-2-7b", "stage1-step101000-tokens424B"),
        ("olmo-2-7b", "stage1-step130000-tokens546B"),
        ("olmo-2-7b", "stage1-step300000-tokens1259B"),
        ("olmo-2-7b", "stage1-step928646-tokens3896B"),
        ("olmo-2-13b", "stage1-step596057-tokens5001B"),
        ("olmo-2-32b", "stage1-step721901-tokens6056B"),
        ("olmo-1b", "step52000-tokens218B"),
        ("olmo-1b", "step738020-tokens3095B"),
        ("olmo-7b", "step1000-tokens4B"),
        ("olmo-7b", "step452000-tokens2000B"),
        ("olmo-7b", "step557000-tokens2464B"),
        ("crystal-phase1", "CrystalCoder_phase1_checkpoint_055500"),
        ("crystal-phase3", "CrystalCoder_phase3_checkpoint_027728"),
    ],
)
def test_revisions_that_were_seen_on_the_hub(name, revision):
    run = find(name)
    assert run.revision(run.step(revision)) == revision


def test_tokens_that_are_rounded_otherwise_are_found_among_the_repos_revisions():
    run = find("olmo-1b")
    assert run.revision(738_000) == "step738000-tokens3095B"
    assert run.revision(738_000, ["main", "step738000-tokens3094B", "step737000-tokens3091B"]) == (
        "step738000-tokens3094B"
    )
    with pytest.raises(LawaError, match="allenai/OLMo-1B has no revision of update 738000, which would be called"):
        run.revision(738_000, ["main"])
    with pytest.raises(LawaError, match="olmo-1b has no checkpoint of update 200000; the nearest are of 117850 and"):
        run.revision(200_000)
    with pytest.raises(LawaError, match="the nearest are of 738020"):
        run.revision(800_000)


@pytest.mark.parametrize(
    ("name", "peak", "tokens", "warmup"),
    [("olmo-2-1b", 4e-4, 512 * 4096, 4000), ("olmo-2-7b", 3e-4, 1024 * 4096, 2000)],
)
def test_the_rate_of_olmo_2_follows_the_tokens_with_this_updates(name, peak, tokens, warmup):
    """allenai/OLMo olmo/optim.py, CosWithWarmup, with t_max 5e12 tokens: they are not a whole number of updates."""
    run = find(name)
    assert (run.batch * run.context, run.total < run.horizon) == (tokens, True)
    assert tokens * warmup == 8_388_608_000
    for t in (1, warmup // 2, warmup, warmup + 1, 500_000, run.total):
        seen, start = t * tokens, 8_388_608_000
        if seen < start:
            expected = peak * seen / start
        else:
            ratio = (seen - start) / (5e12 - start)
            expected = peak / 10 + (peak - peak / 10) * (1 + math.cos(math.pi * ratio)) / 2
        assert run.rate(t) == pytest.approx(expected, rel=1e-6), t


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("pythia-160m", "pythia-160m"),
        ("EleutherAI/pythia-160m", "pythia-160m"),
        ("Pythia-160M", "pythia-160m"),
        ("amber", "amber"),
        ("LLM360/Amber", "amber"),
        ("LLM360/K2", "k2"),
        ("OLMo-2-0425-1B", "olmo-2-1b"),
        ("allenai/OLMo-2-1124-13B", "olmo-2-13b"),
    ],
)
def test_a_name_or_a_repo_finds_it(given, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find(given).name == name


def test_what_is_none_gets_a_suggestion(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given, said in [
        ("pythia-160", r"no trajectory is called pythia-160; did you mean pythia-160m\?"),
        ("EleutherAI/pythia-160n", r"did you mean pythia-160m\?"),
        (
            "nothing/like-it",
            "no trajectory is called nothing/like-it; give a run, a YAML file, or a name that lawa",
        ),
        ("LLM360/CrystalCoder", "holds several trajectories; name one of crystal-phase1, crystal-phase2, crystal-ph"),
        (".", r"\. is no run of lawa train \(it has no config.yaml\); name a run, or a YAML file"),
    ]:
        with pytest.raises(UsageError, match=said):
            find(given)


def test_no_torch_is_loaded():
    script = (
        "import sys\nfrom lawa.trajectories import registry\nregistry.find('amber').rate(7)\n"
        "print([name for name in ('torch', 'transformers', 'huggingface_hub') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert registry.names() == EVERY
