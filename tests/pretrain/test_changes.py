"""What a resumed run may be told otherwise."""

import json

import pytest

from lawa.errors import UsageError
from lawa.pretrain.changes import between, check
from lawa.pretrain.config import Config
from lawa.settings import build, merge


def test_everything_that_differs_is_found_by_its_path():
    before = {"seed": 0, "training": {"lr": 1.0, "betas": [1, 2]}, "averages": {"a": {"window": 3}, "b": None}, "x": {}}
    after = {"seed": 0, "training": {"lr": 2.0, "betas": [1, 2]}, "averages": {"a": {"window": 3}, "c": {}}, "x": 1}
    assert between(before, after) == {"training.lr": (1.0, 2.0), "averages.c": (None, {}), "x": ({}, 1)}
    assert between(after, before)["training.lr"] == (2.0, 1.0)
    assert between(before, before) == {}


def test_a_setting_that_an_older_version_did_not_have_is_none_until_it_is_given():
    assert between({}, {"new": None, "given": 1}) == {"given": (None, 1)}
    assert between({"old": None, "was": 1}, {}) == {"was": (1, None)}


@pytest.mark.parametrize(
    "averaging",
    [
        {},
        {"averages": {"w": {"window": 3, "every": 2, "coefficients": [0.2, 0.3, 0.5]}, "e": {"ema": {"matches": "w"}}}},
        {"averages": None, "window": 2, "every": 2, "coefficients": {"ema": 0.9}},
    ],
)
def test_a_configuration_that_was_recorded_is_the_same_when_it_is_read_back(settings, averaging):
    """run.json keeps it as JSON, which knows no tuples."""
    averaging = {**settings["averaging"], **averaging}
    config = build(Config, {**settings, "averaging": {k: v for k, v in averaging.items() if v is not None}})
    recorded = json.loads(json.dumps(config.to_dict()))
    assert between(recorded, config.to_dict()) == {}
    assert between(recorded, build(Config, recorded).to_dict()) == {}


SAFE = [
    ("evaluation.every", 4, 2),
    ("evaluation.sequences", 8, 4),
    ("checkpoints.every", 2, 3),
    ("checkpoints.keep", None, 1),
    ("checkpoints.save_averages", "all", "last"),
    ("training.log_every", 2, 1),
    ("training.micro_batch", None, 2),
    ("training.device", "cpu", "auto"),
    ("training.updates", 12, 13),
    ("data.workers", None, 2),
    ("data.store", "a", "b"),
]
OTHER = [
    ("seed", 0, 1),
    ("training.updates", 12, 11),
    ("training.lr", 1e-2, 1e-3),
    ("training.batch", 4, 8),
    ("training.precision", "fp32", "bf16"),
    ("training.sharding", "none", "fsdp2"),
    ("averaging.mode", "evaluate", "replace"),
    ("averaging.averages.lawa.window", 3, 4),
    ("averaging.averages.new", None, {"ema": 0.5}),
    ("data.context", 16, 8),
    ("data.seed", 0, 1),
    ("model.overrides.hidden_size", 16, 32),
]


@pytest.mark.parametrize(("path", "was", "now"), [*SAFE, *OTHER], ids=lambda value: str(value))
def test_what_is_shown_kept_or_where_work_is_done_may_change_and_the_run_may_not(path, was, now):
    check({path: (was, now)}, force=True)
    if (path, was, now) in SAFE:
        check({path: (was, now)}, force=False)
        return
    with pytest.raises(UsageError) as refused:
        check({path: (was, now)}, force=False)
    assert str(refused.value) == (
        f"{path} was {was} and is {now}: that makes it another run; leave it as it was, start a new run, "
        "or give --override to go on all the same, which is recorded"
    )


def test_every_other_setting_is_named_and_no_safe_one():
    changed = {"training.log_every": (2, 1), "seed": (0, 1), "training.lr": (1, 2), "data.context": (1, 2)}
    with pytest.raises(UsageError, match=r"^seed was 0 and is 1 \(and training\.lr, data\.context\): that makes"):
        check(changed, force=False)
    check({}, force=False)


def test_a_changed_section_is_told_by_what_changed_in_it(settings):
    before = build(Config, settings).to_dict()
    after = build(Config, merge(settings, {"averaging": {"averages": {"lawa": {"window": 2}}}})).to_dict()
    assert between(before, after) == {"averaging.averages.lawa.window": (3, 2)}
