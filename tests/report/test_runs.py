import json
import math

import pytest

from lawa.errors import LawaError
from lawa.report.runs import load_run, load_runs
from report.synthetic import end, evaluation, replacement, run_json, write


def test_a_run_that_evaluates_averages(tmp_path):
    lines = [evaluation(20, plain=5.0), evaluation(40, plain=4.0, ema=4.5), evaluation(60, plain=3.0, ema=2.5), end(60)]
    run = load_run(write(tmp_path / "a", run_json("a"), lines))
    assert (run.name, run.seed, run.last_update, run.finished, run.replaces) == ("a", 0, 60, True, False)
    assert run.plain.updates == (20, 40, 60)
    assert run.plain.tokens == (20480, 40960, 61440)
    assert run.plain.losses == (5.0, 4.0, 3.0)
    (ema,) = run.averages
    assert (ema.name, ema.updates, ema.losses) == ("ema", (40, 60), (4.5, 2.5))
    assert run.snapshots == {"ema": 5}
    assert run.delivered.losses == run.zigzag.losses == run.plain.losses
    assert run.seconds is not None
    assert run.seconds["averaging"] == 0.4


def test_averages_come_in_the_order_of_the_configuration(tmp_path):
    lines = [evaluation(20, plain=5.0, ema=5.0, extra=5.0), evaluation(40, plain=4.0, lawa=4.0)]
    description = run_json("a", averages={"lawa": "window 5", "never": "window 9", "ema": "EMA"})
    run = load_run(write(tmp_path / "a", description, lines))
    assert [average.name for average in run.averages] == ["lawa", "ema", "extra"]


def test_a_run_that_replaces_has_two_losses_at_a_replacement(tmp_path):
    lines = [
        evaluation(20, plain=5.0),
        evaluation(40, plain=4.0),
        replacement(40, 3.5),
        evaluation(60, plain=3.75),
        evaluation(80, plain=3.0),
        replacement(80, 2.5),
        end(80),
    ]
    run = load_run(write(tmp_path / "a", run_json("a", mode="replace"), lines))
    assert run.replaces
    assert run.plain.losses == (5.0, 4.0, 3.75, 3.0)
    assert run.zigzag.updates == (20, 40, 40, 60, 80, 80)
    assert run.zigzag.losses == (5.0, 4.0, 3.5, 3.75, 3.0, 2.5)
    assert run.delivered.updates == (20, 40, 60, 80)
    assert run.delivered.losses == (5.0, 3.5, 3.75, 2.5)


def test_a_skipped_replacement_leaves_the_live_weights(tmp_path):
    lines = [evaluation(20, plain=5.0), replacement(20, math.nan, applied=False)]
    run = load_run(write(tmp_path / "a", run_json("a", mode="replace"), lines))
    assert run.zigzag.losses == run.delivered.losses == (5.0,)


def test_a_replacement_nobody_evaluated_delivers_no_known_loss(tmp_path):
    lines = [evaluation(20, plain=5.0), evaluation(40, plain=4.0), replacement(40, None)]
    run = load_run(write(tmp_path / "a", run_json("a", mode="replace"), lines))
    assert run.zigzag.losses == (5.0, 4.0)
    assert run.delivered.updates == (20,)


def test_what_a_resumed_run_repeats_counts_once(tmp_path):
    lines = [
        evaluation(20, plain=5.0),
        replacement(20, 4.0),
        replacement(20, 4.5),
        evaluation(40, plain=3.0),
        end(40),
        evaluation(60, plain=2.0),
    ]
    run = load_run(write(tmp_path / "a", run_json("a", mode="replace"), lines))
    assert run.delivered.losses == (4.5, 3.0, 2.0)
    assert not run.finished  # the end at 40 is that of the run before it was prolonged


def test_losses_that_are_no_numbers_are_carried(tmp_path):
    directory = write(tmp_path / "a", run_json("a"), [])
    (directory / "metrics.jsonl").write_text(
        '{"kind": "evaluation", "update": 1, "tokens": 9, "losses": {"plain": NaN, "x": Infinity}, "snapshots": {}}\n'
        '{"kind": "evaluation", "update": 2, "tokens": 18, "losses": {"plain": null}}\n'
        '{"kind": "train", "update": 2, "tokens": 18, "loss": NaN, "lr": 0.1, "grad_norm": NaN}\n'
    )
    run = load_run(directory)
    assert all(math.isnan(loss) for loss in run.plain.losses)
    assert run.averages[0].losses == (math.inf,)
    assert math.isnan(run.training.losses[0])


def test_a_run_that_has_only_begun(tmp_path):
    (tmp_path / "run.json").write_text('{"unknown": [1, 2]}')
    run = load_run(tmp_path)
    assert (run.name, run.last_update, run.finished, run.configuration) == (tmp_path.name, 0, False, None)
    assert run.plain.updates == ()


def test_a_line_that_is_still_being_written_is_left_out(tmp_path):
    directory = write(tmp_path / "a", run_json("a"), [evaluation(20, plain=5.0)])
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "evaluation", "upd')
    assert load_run(directory).plain.updates == (20,)


def test_what_is_no_run_directory(tmp_path):
    with pytest.raises(LawaError, match=r"nowhere is not a directory"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(LawaError, match=r"is not a run directory: it has no run.json"):
        load_run(tmp_path)
    with pytest.raises(LawaError, match="at least one"):
        load_runs([])


@pytest.mark.parametrize(("text", "message"), [("{", "is not JSON"), ("[1]", "holds list")])
def test_a_description_that_cannot_be_read(tmp_path, text, message):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(LawaError, match=message):
        load_run(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        {"kind": "evaluation", "update": 1, "tokens": 9},
        {"kind": "evaluation", "update": 1, "tokens": 9, "losses": 3},
        {"kind": "evaluation", "update": 1, "tokens": 9, "losses": {"plain": "low"}},
        {"kind": "end", "update": 2, "tokens": 9},
        {"kind": "train", "update": "first", "tokens": 9, "loss": 1.0, "lr": 1.0},
        {"kind": "train", "update": [], "tokens": 9, "loss": 1.0, "lr": 1.0},
    ],
)
def test_records_of_another_shape_are_named(tmp_path, line):
    directory = write(tmp_path / "a", run_json("a"), [evaluation(2, plain=1.0), line])
    with pytest.raises(LawaError, match=r"metrics.jsonl: a record lacks a field"):
        load_run(directory)


def test_equal_names_are_told_apart_by_their_paths(tmp_path):
    for place in ("lr1/seed0", "lr2/seed0", "other"):
        write(tmp_path / place, run_json("b" if place == "other" else "a"), [])
    runs = load_runs([tmp_path / "lr1/seed0", tmp_path / "lr2/seed0", tmp_path / "other"])
    assert [run.name for run in runs] == ["a (lr1/seed0)", "a (lr2/seed0)", "b"]


def test_a_run_given_twice(tmp_path):
    directory = write(tmp_path / "a", run_json("a"), [])
    with pytest.raises(LawaError, match="given 2 times"):
        load_runs([directory, tmp_path / "a" / ".." / "a"])


def test_the_learning_rate_is_read_from_the_training_lines(tmp_path):
    line = {"kind": "train", "update": 5, "tokens": 5120, "loss": 6.5, "lr": 1e-3, "grad_norm": 0.9}
    run = load_run(write(tmp_path / "a", run_json("a"), [line]))
    assert (run.training.updates, run.training.losses, run.training.learning_rates) == ((5,), (6.5,), (1e-3,))
    assert json.loads((tmp_path / "a" / "run.json").read_text()) == run.description


def test_evaluations_at_an_update_in_several_records_are_one(tmp_path):
    """`lawa follow` writes a line for each average; where both have a loss, the later one counts."""
    lines = [
        {"kind": "evaluation", "update": 5, "tokens": 50, "losses": {"plain": 4.0}},
        {"kind": "evaluation", "update": 5, "tokens": 50, "losses": {"window3": 3.5}, "snapshots": {"window3": 3}},
        {"kind": "evaluation", "update": 5, "tokens": 50, "losses": {"plain": 3.9}},
    ]
    run = load_run(write(tmp_path / "run", run_json("run"), lines))
    assert (run.plain.updates, run.plain.losses) == ((5,), (3.9,))
    assert [(curve.name, curve.losses) for curve in run.averages] == [("window3", (3.5,))]
    assert run.snapshots == {"window3": 3}
