"""Impossible settings are refused before any work, with the setting's name and a way out."""

from pathlib import Path

import pytest
import torch
import yaml

from lawa.averaging.averages import EMA, RunningMean, Window
from lawa.errors import UsageError
from lawa.pretrain.config import Config, load, read_yaml
from lawa.pretrain.setup import make_averager
from lawa.settings import build, merge


def config(settings, **sections):
    return build(Config, merge(settings, sections))


def test_a_file_an_arm_and_flags_are_laid_over_each_other(settings, tmp_path):
    file = tmp_path / "c.yaml"
    arms = {"slide": {"averaging": {"mode": "replace", "replace_with": "lawa"}, "training": {"lr": 5e-3}}}
    file.write_text(yaml.safe_dump({**settings, "arms": arms}))
    assert load(file).averaging.mode == "evaluate"
    laid = load(file, arm="slide", overrides={"training": {"lr": "4e-3"}})
    assert (laid.averaging.mode, laid.training.lr, laid.training.batch) == ("replace", 4e-3, 4)
    with pytest.raises(UsageError, match="has no arm 'clear'; it has slide"):
        load(file, arm="clear")


def test_what_is_written_reads_back_as_the_same(settings):
    made = config(settings)
    assert build(Config, yaml.safe_load(yaml.safe_dump(made.to_dict()))) == made


@pytest.mark.parametrize(
    ("content", "sentence"), [("a: [", "is not YAML"), ("- 1", "must hold sections"), (None, "cannot be read")]
)
def test_a_file_that_is_no_configuration(tmp_path, content, sentence):
    if content is not None:
        (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(UsageError, match=sentence):
        load(tmp_path / "c.yaml")


def test_averages_by_name(settings):
    averages = {
        "a": {"window": 5, "every": 20, "coefficients": "linear"},
        "b": {"ema": "0.98", "every": 10},
        "c": {"ema": {"matches": "a"}},
        "d": {"running_mean": 900, "every": 10},
    }
    assert config({**settings, "averaging": {"averages": averages}}, training={"updates": 1000}).averaging.named == {
        "a": Window(5, every=20, coefficients="linear"),
        "b": EMA(0.98, every=10),
        "c": EMA.matched(Window(5, every=20)),
        "d": RunningMean(start=900, every=10),
    }
    without = merge(settings, {"averaging": {"averages": {"ema": None}}})
    assert list(build(Config, without).averaging.named) == ["lawa"]
    short = build(Config, {**settings, "averaging": {"window": 4, "every": 5, "min_window": 2}})
    assert short.averaging.named == {"lawa": Window(4, every=5, min_window=2)}
    assert build(Config, {**settings, "averaging": {"mode": "none"}}).averaging.named == {}


LAWA = {"mode": "replace", "replace_with": "lawa"}
EMA_MOMENTS = {"mode": "replace", "replace_with": "ema", "replace_every": 2, "moments": "average"}


@pytest.mark.parametrize(
    ("section", "values", "sentence"),
    [
        ("model", {"preset": "pythia-3m"}, "model.preset='pythia-3m' must be one of pythia-14m"),
        ("model", {"preset": "pythia-14m"}, "only one of them"),
        ("model", {"architecture": None}, "set model.preset, model.architecture, model.config or model.weights"),
        ("data", {"train": []}, "data.train is empty"),
        ("data", {"validation_fraction": 1.0}, "data.validation_fraction=1.0 must lie between"),
        ("data", {"vocab_size": 100}, "data.vocab_size=100 must be at least 257"),
        ("training", {"warmup": 12}, "training.warmup=12 leaves nothing"),
        ("training", {"lr": 0}, "training.lr=0.0 must be above 0"),
        ("training", {"min_lr": 1.0}, "training.min_lr=1.0 must lie between 0 and training.lr"),
        ("training", {"micro_batch": 3}, "training.micro_batch=3 must divide training.batch=4"),
        ("training", {"schedule": "cosin"}, "training.schedule='cosin' must be one of constant"),
        ("training", {"decay": 3}, "training.decay has no meaning for training.schedule='cosine'"),
        ("training", {"schedule": "wsd", "decay": 11}, "exceed training.updates=12"),
        ("training", {"precision": "fp8"}, "training.precision='fp8'"),
        ("averaging", {"window": 3}, "averaging.window describes the one window"),
        ("averaging", {"replace_with": "lwa"}, "averaging.replace_with='lwa' is none of lawa, ema"),
        ("averaging", {"averages": {"lawa": {"window": 3, "evry": 2}}}, r"averaging\.averages\.lawa: .*'evry'"),
        ("averaging", {"averages": {"x": {"every": 2}}}, "must have exactly one of window, ema, running_mean"),
        ("averaging", {"averages": {"x": {"ema": 1.5}}}, r"^averaging\.averages\.x: EMA beta=1.5"),
        ("averaging", {"averages": {"x": {"ema": {"matches": "ema"}}}}, "must name a window given before it"),
        ("averaging", {"averages": {"x": {"window": 3, "every": 2, "stop": 3}}}, "never fills"),
        ("averaging", {"averages": {"plain": {"ema": 0.9}}}, "'plain' cannot name an average|'plain' and names"),
        ("averaging", {"averages": {"replaced": {"ema": 0.9}}}, "'replaced' cannot name an average"),
        ("averaging", {"placement": "tape"}, "averaging.placement='tape' must be one of device, host, disk"),
        ("averaging", {"moments": "mean"}, "averaging.moments='mean' must be one of keep, reset, average"),
        ("averaging", {"after_replace": "drop"}, "averaging.after_replace='drop' must be one of slide, clear"),
        ("averaging", {"strength": 0}, r"averaging.strength=0.0 must lie in \(0, 1\]"),
        ("averaging", {"replace_every": 0}, "averaging.replace_every=0 must be at least 1"),
        ("averaging", {"mode": "replace"}, "averaging: replace_with must name .* lawa, ema"),
        ("averaging", {**LAWA, "replace_every": 3}, "averaging: replace_every=3 is not a multiple of every=2"),
        ("averaging", {**LAWA, "replace_until": 5}, "averaging: replace_until=5 comes before the first .* at 6"),
        (
            "averaging",
            {"mode": "replace", "replace_with": "ema"},
            "'ema', a running average, needs replace_every",
        ),
        ("averaging", {**EMA_MOMENTS}, "averaging: moments='average' needs a window"),
        (
            "averaging",
            {"averages": {"lawa": {"every": 5}}},
            r"averages\.lawa: 'lawa' .* first ready at update 15, after",
        ),
        ("averaging", {**LAWA, "averages": {"lawa": {"every": 5}}}, "'lawa' .* first ready at update 15, after"),
        ("averaging", {"averages": {"ema": {"start": 13}}}, "'ema' .* first ready at update 13"),
        ("training", {"clip": -1}, "training.clip=-1.0 must be at least 0"),
        ("training", {"schedule": "wsd", "decay": -1}, "training.decay=-1 must be at least 0"),
        ("training", {"weight_decay": float("nan")}, "training.weight_decay=nan must be at least 0"),
        ("training", {"beta1": 1}, r"training.beta1=1.0 must lie in \[0, 1\)"),
        ("training", {"beta2": -0.1}, r"training.beta2=-0.1 must lie in \[0, 1\)"),
        ("training", {"eps": 0}, "training.eps=0.0 must be above 0"),
        ("data", {"seed": -1}, "data.seed=-1 must be at least 0"),
        ("evaluation", {"every": 0}, "evaluation.every=0 must be at least 1"),
        ("checkpoints", {"save_averages": "some"}, "checkpoints.save_averages='some'"),
    ],
)
def test_impossible_settings(settings, section, values, sentence):
    with pytest.raises(UsageError, match=sentence):
        config(settings, **{section: values})


def test_the_one_window_must_fill_within_the_run(settings):
    with pytest.raises(UsageError, match=r"averaging: 'lawa' \(window 10, every 1000, .* first ready at update 10000"):
        build(Config, {**settings, "averaging": {}})
    assert build(Config, {**settings, "averaging": {"every": 12, "min_window": 1}}).averaging.named


def test_every_replacement_that_is_accepted_is_one_that_the_averager_accepts(settings):
    """The rules are written twice, here without torch: the averager has the last word."""
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    no_disk = None
    for values in (LAWA, {**LAWA, "after_replace": "clear"}, {**LAWA, "replace_every": 4, "moments": "average"}):
        assert make_averager(config(settings, averaging=values).averaging, model, optimizer, no_disk) is not None


def test_windows_on_disk_need_a_checkpoint_at_every_capture(settings):
    assert config(settings, averaging={"placement": "disk"}).averaging.placement == "disk"
    with pytest.raises(UsageError, match=r"'lawa' captures every 2 updates, but checkpoints\.every=4; make it"):
        config(settings, averaging={"placement": "disk"}, checkpoints={"every": 4})
    with pytest.raises(UsageError, match=r"moments=average needs snapshots with moments; placement=disk has weights"):
        config(settings, averaging={"placement": "disk", **LAWA, "moments": "average"})


@pytest.mark.parametrize("seed", [-1, 1 << 63])
def test_seeds_have_63_bits(settings, seed):
    with pytest.raises(UsageError, match=f"seed={seed} must be at least 0 and below"):
        build(Config, {**settings, "seed": seed})


def test_what_has_no_effect_is_said(settings):
    assert config(settings).without_effect() == []
    idle = config(settings, training={"schedule": "constant", "min_lr": 1e-3}).without_effect()
    assert idle == ["training.min_lr=0.001 has no effect with training.schedule='constant'"]


def test_paths_are_written_absolute(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tokenizer").mkdir()
    data = {"train": ["a.txt"], "validation": ["b"], "tokenizer": "tokenizer", "store": "store"}
    written = config(settings, data=data).to_dict()["data"]
    here = {key: [f"{tmp_path}/{path}" for path in data[key]] for key in ("train", "validation")}
    here |= {key: f"{tmp_path}/{data[key]}" for key in ("tokenizer", "store")}
    assert {key: written[key] for key in here} == here
    assert config(settings, data={"tokenizer": "gpt2"}).to_dict()["data"]["tokenizer"] == "gpt2"


@pytest.mark.parametrize(
    "file", sorted((Path(__file__).parents[2] / "configs").glob("*.yaml")), ids=lambda file: file.stem
)
def test_our_own_configurations_are_valid_in_every_arm(file):
    for arm in (None, *read_yaml(file)["arms"]):
        load(file, arm=arm)
    short = {"updates": 100, "warmup": 0} | ({"decay": 0} if load(file).training.schedule == "wsd" else {})
    with pytest.raises(UsageError, match="first ready at"):
        load(file, overrides={"training": short})
