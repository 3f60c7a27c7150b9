import math

import pytest

from lawa.report.arms import find
from lawa.report.compare import At
from lawa.report.runs import load_runs
from lawa.report.text import headline, size
from report.synthetic import end, evaluation, replacement, run_json, write


@pytest.fixture
def runs_of(tmp_path):
    """Write the runs {name: (lines, changes to run.json)} and load them in this order."""

    def runs_of(**runs):
        return load_runs(
            [write(tmp_path / name, run_json(name, **changes), lines) for name, (lines, changes) in runs.items()]
        )

    return runs_of


BASE = ([evaluation(20, plain=5.0), evaluation(40, plain=4.0, ema=3.5), end(40)], {"averages": {"ema": "EMA 0.9"}})
REPLACE = (
    [evaluation(20, plain=5.5), evaluation(40, plain=4.5, lawa=3.0), replacement(40, 3.0), end(40)],
    {"mode": "replace", "replaced_with": "lawa", "after_replace": "clear"},
)


def test_the_baseline_is_the_first_run_that_does_not_replace(runs_of):
    findings = find(runs_of(r=REPLACE, base=BASE, other=BASE))
    assert [arm.label for arm in findings.arms] == ["plain", "ema", "r", "other", "other · ema"]
    assert findings.baseline.run.name == "base"
    assert findings.baseline.comparison is None
    assert findings.notes == ()
    _, ema, replaced, other, _ = findings.arms
    assert ema.what == "EMA 0.9"
    assert ema.comparison is not None
    assert ema.comparison.gain == 0.5
    assert replaced.what == "weights replaced with lawa 1×, window: clear"
    assert replaced.comparison is not None
    assert replaced.comparison.gains == (At(20, -0.5), At(40, 1.0))
    assert replaced.snapshots == 5
    assert other.comparison is not None
    assert other.comparison.gain == 0.0


def test_where_every_run_replaces_the_weights_before_are_the_baseline_and_it_is_said(runs_of):
    findings = find(runs_of(r=REPLACE))
    assert [arm.label for arm in findings.arms] == ["live weights", "r"]
    assert findings.arms[1].comparison is not None
    assert findings.arms[1].comparison.gain == 1.5
    assert "no plain training" in findings.notes[0]


def test_an_average_evaluated_beyond_its_replacements_is_an_arm(runs_of):
    lines, changes = REPLACE
    half = (lines, {**changes, "strength": 0.5})
    more = ([*lines, evaluation(60, plain=4.0, lawa=3.0)], changes)
    findings = find(runs_of(base=BASE, once=REPLACE, half=half, more=more))
    labels = [arm.label for arm in findings.arms]
    assert labels == ["plain", "ema", "once", "half", "more", "half · lawa", "more · lawa"]


def test_a_picture_has_room_for_averages_of_replacing_runs_only_if_they_are_best(runs_of):
    lines, changes = REPLACE
    lines = [*lines[:1], evaluation(40, plain=4.5, lawa=3.0, ema=2.9, other=2.8), *lines[2:]]
    findings = find(runs_of(base=BASE, r=(lines, changes)))
    assert [arm.label for arm in findings.arms] == ["plain", "ema", "r", "r · ema", "r · other"]
    assert findings.best is findings.arms[4]
    assert [arm.label for arm in findings.shown] == ["plain", "ema", "r", "r · other"]
    alone = find(runs_of(alone=(lines, changes)))
    assert [arm.label for arm in alone.shown] == ["live weights", "alone", "ema", "other"]


def test_labels_that_would_be_equal_name_their_run(runs_of):
    findings = find(runs_of(base=BASE, ema=BASE))
    assert [arm.label for arm in findings.arms] == ["plain", "ema of base", "ema of ema", "ema · ema"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"dataset": "tiny", "validation": "other"}}, "its data differs from that of base (in validation)"),
        ({"tokens_per_update": 2048}, "its number of tokens per update differs from that of base (2048 against 1024)"),
    ],
)
def test_losses_that_mean_something_else_are_shown_and_not_subtracted(runs_of, changes, message):
    lines, own = BASE
    findings = find(runs_of(base=BASE, other=(lines, {**own, **changes})))
    assert [arm.comparison is None for arm in findings.arms] == [True, False, True, True]
    assert findings.arms[2].incomparable == message
    assert findings.notes == (f"other is not compared with plain: {message}.",)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"data": {"context": 512}}, "its context differs from that of base (512 against 256)"),
        (
            {"evaluation": {"sequences": 8}},
            "its number of evaluated sequences differs from that of base (8 against 64)",
        ),
    ],
)
def test_settings_that_change_what_is_evaluated_count_too(tmp_path, config, message):
    base = write(
        tmp_path / "base", run_json("base"), BASE[0], {"data": {"context": 256}, "evaluation": {"sequences": 64}}
    )
    other = write(tmp_path / "other", run_json("other"), BASE[0], config)
    findings = find(load_runs([base, other]))
    assert [arm.incomparable for arm in findings.arms] == [None, None, message, message]


def test_a_baseline_that_had_its_final_loss_long_before_is_told(runs_of):
    bumpy = [evaluation(t, plain=loss) for t, loss in ((100, 5.0), (200, 3.0), (300, 4.5), (400, 4.0))]
    findings = find(runs_of(bumpy=([*bumpy, end(400)], {})))
    assert findings.notes == (
        "plain itself first had its final loss at update 150, not at 400: updates saved are partly the noise of its "
        "curve.",
    )


def test_a_run_that_stopped_at_a_training_loss_of_nan_says_so(runs_of):
    line = {"kind": "train", "update": 60, "tokens": 61440, "loss": math.nan, "lr": 1.0, "grad_norm": math.nan}
    findings = find(runs_of(base=([*BASE[0][:2], line], {})))
    assert findings.notes[1] == "The training loss of base was nan at update 60."


def test_a_record_without_data_is_taken_at_its_word(runs_of):
    lines, own = BASE
    findings = find(runs_of(base=BASE, other=(lines, {**own, "data": None})))
    assert findings.notes == ()


def test_what_a_reader_must_be_told(runs_of):
    diverged = [evaluation(20, plain=5.0), evaluation(40, plain=math.nan), end(40)]
    short = [evaluation(20, plain=5.0, ema=4.0)]
    skipping = [
        evaluation(20, plain=5.0),
        replacement(20, None, applied=False),
        evaluation(40, plain=4.0),
        replacement(40, None),
        end(40),
    ]
    findings = find(
        runs_of(
            base=BASE,
            diverged=(diverged, {"seed": 1}),
            short=(short, {}),
            empty=([], {}),
            skipping=(skipping, {"mode": "replace"}),
        )
    )
    assert findings.notes == (
        "short is unfinished: its records reach update 20 of 1200.",
        "empty is unfinished: its records reach update 0 of 1200.",
        "empty has no evaluation yet.",
        "skipping skipped 1 of 2 replacements, because the average was not finite.",
        "skipping was not evaluated after its last replacement, at update 40: what it hands over was last "
        "evaluated at update 20.",
        "The runs have different seeds (0, 1): a gain between two of them holds the difference between seeds too.",
        "Diverged: diverged (nan at update 40).",
        "short, short · ema, skipping: last evaluated at update 20, but plain at 40, so the final losses are not "
        "after the same training.",
    )


def test_the_headline_says_which_arm_is_lowest_and_how_much_earlier(runs_of):
    lines = [evaluation(20, plain=5.0, ema=4.5), evaluation(40, plain=4.0, ema=3.5), end(40)]
    start = "At update 40 the validation loss of plain is 4.0000 nats per token. The lowest is that of ema, 3.5000"
    assert headline(find(runs_of(base=(lines, {})))) == (
        f"{start}: 0.5000 lower, and it reached the final loss of plain 10 updates (25%) earlier."
    )
    assert headline(find(runs_of(late=BASE))) == f"{start}: 0.5000 lower."
    longer = [*lines[:2], evaluation(60, plain=3.5), end(60)]
    assert "The lowest is that of longer at update 60, 3.5000: 0.5000 lower" in headline(
        find(runs_of(short=([lines[0], evaluation(40, plain=4.0)], {}), longer=(longer, {})))
    )


def test_the_headline_says_when_nothing_helped_and_when_there_is_nothing(runs_of):
    worse = [evaluation(20, plain=5.0), evaluation(40, plain=4.0, ema=4.25), end(40)]
    assert headline(find(runs_of(base=(worse, {})))).endswith(
        "No arm ends below it; the nearest, ema, ends 0.2500 above."
    )
    level = [evaluation(20, plain=5.0), evaluation(40, plain=4.0, ema=3.99999), end(40)]
    assert headline(find(runs_of(level=(level, {})))).endswith("the nearest, ema, ends level with it.")
    assert headline(find(runs_of(alone=([evaluation(20, plain=5.0)], {})))).endswith("is 5.0000 nats per token.")
    assert headline(find(runs_of(empty=([], {})))).startswith("There is nothing to compare yet")


def test_the_size_is_stated_with_the_number_of_runs(runs_of):
    big = (BASE[0], {"model": {"parameters": 70_000_000}, "seed": 1})
    assert size(find(runs_of(base=BASE))) == (
        "gpt_neox, 1.32M parameters · 40 updates, 41K tokens · one run per arm, seed 0"
    )
    assert size(find(runs_of(base2=BASE, big=big))) == (
        "gpt_neox, 1.32M–70M parameters · 40 updates, 41K tokens · one run per arm, seeds 0 and 1"
    )
    bare = (BASE[0], {"model": None, "seed": None, "tokens_per_update": None})
    assert size(find(runs_of(bare=bare))) == "40 updates · one run per arm"
