"""Impossible settings are refused before any work, with the setting's name and a way out."""

import pytest
import yaml

from lawa.averaging.averages import EMA, RunningMean, Window
from lawa.errors import UsageError
from lawa.pretrain.config import Config, load
from lawa.pretrain.settings import build, merge


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
    assert build(Config, {**settings, "averaging": {"averages": averages}}).averaging.named == {
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


@pytest.mark.parametrize(
    ("section", "values", "sentence"),
    [
        ("model", {"preset": "pythia-3m"}, "model.preset='pythia-3m' must be one of pythia-14m"),
        ("model", {"preset": "pythia-14m"}, "only one of them"),
        ("model", {"architecture": None}, "set model.preset or model.architecture"),
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
        ("averaging", {"averages": {"x": {"ema": 1.5}}}, r"averaging\.averages\.x: EMA beta=1.5"),
        ("averaging", {"averages": {"x": {"ema": {"matches": "ema"}}}}, "must name a window given before it"),
        ("averaging", {"averages": {"x": {"window": 3, "every": 2, "stop": 3}}}, "never fills"),
        ("evaluation", {"every": 0}, "evaluation.every=0 must be at least 1"),
        ("checkpoints", {"save_averages": "some"}, "checkpoints.save_averages='some'"),
    ],
)
def test_impossible_settings(settings, section, values, sentence):
    with pytest.raises(UsageError, match=sentence):
        config(settings, **{section: values})
