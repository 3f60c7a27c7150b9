"""lawa follow from the command line: what is told, where, with which code; along a run of lawa train."""

import json

import pytest
import yaml

from lawa.cli import main
from lawa.records import read
from trajectories import following


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    made = tmp_path_factory.mktemp("followed")
    following.folder(made / "run", [1000, 2000, 3000])
    following.text(made / "text.txt")
    return made


def arguments(place, *more):
    return ["follow", str(place / "run"), "--window", "2", "--text", str(place / "text.txt"), "--context", "64", *more]


def test_a_dry_run_tells_what_it_takes_and_does_nothing(place, tmp_path, capsys):
    output = ["--output", str(tmp_path / "out"), "--dry-run"]
    assert main(arguments(place, *output)) == 0
    shown = capsys.readouterr().out
    assert f"trajectory     run ({place / 'run'})\n" in shown
    assert "steps          3, 1000 to 3000; windows every 1000 updates\n" in shown
    assert "average        window2: 2, from step 2000 on; spans 2\n" in shown
    assert "evaluations    3 plain, 2 of averages\n" in shown
    assert "memory         at most 2 snapshots at once" in shown
    assert "disk" not in shown  # nothing is fetched
    assert not (tmp_path / "out").exists()
    assert main(arguments(place, *output, "--json", "--host-bytes", "100kB", "--spacing", "1,2")) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["step"] for one in told["checkpoints"]] == [1000, 2000, 3000]
    assert (told["held"], told["mapped"], told["host_budget"]) == (3, 2, 100_000)
    assert told["evaluations"] == {"plain": 3, "averages": 3, "left": 6}
    assert [one["spans"] for one in told["averages"]] == [2, 3]


def test_results_on_stdout_and_the_rest_on_stderr(place, tmp_path, capsys):
    output = ["--output", str(tmp_path / "out")]
    assert main(arguments(place, *output, "--coefficients", "uniform", "--coefficients", "0.25,0.75")) == 0
    shown = capsys.readouterr()
    assert [line.split()[0] for line in shown.out.splitlines()[:2]] == ["window2", "window2-explicit"]
    assert "largest gain" in shown.out
    assert "updates ahead" in shown.out or "never reached" in shown.out
    assert "lawa follow: evaluations: 3 plain, 4 of averages" in shown.err
    assert "7/7 step 3000: window2-explicit" in shown.err
    assert main(arguments(place, *output, "--coefficients", "uniform", "--coefficients", "0.25,0.75", "--json")) == 0
    shown = capsys.readouterr()
    results = json.loads(shown.out)["results"]
    assert [(one["step"], one["average"]) for one in results] == [
        (2000, "window2"),
        (3000, "window2"),
        (2000, "window2-explicit"),
        (3000, "window2-explicit"),
    ]
    assert "7 are done already" in shown.err


@pytest.mark.parametrize(
    ("more", "code", "sentence"),
    [
        (["--workers", "2"], 2, "--workers and --address belong to --engine ray"),
        (["--disk-budget", "many"], 2, "--disk-budget many is no size; write it as 50GB"),
        (["--coefficients", "ema:x"], 2, "--coefficients ema:x is unknown"),
        (["--steps", "1000:9000:1000"], 1, "has no checkpoint of step 4000; it has 1000, 2000, 3000"),
        (["--spacing", "5"], 2, "window2-spacing5 spans 6 steps"),
        (["--batch", "0"], 2, "batch=0 must be at least 1"),
        (["--context", "65"], 2, "context=65 is longer than the 64 positions"),
    ],
)
def test_mistakes_get_one_sentence_and_a_code(place, tmp_path, capsys, more, code, sentence):
    assert main(arguments(place, "--output", str(tmp_path / "out"), *more)) == code
    assert sentence in capsys.readouterr().err


def test_a_name_that_is_nearly_one_is_corrected(place, tmp_path, capsys):
    more = ["--text", str(place / "text.txt"), "--output", str(tmp_path / "out")]
    assert main(["follow", "pythia-161m", "--window", "2", *more]) == 2
    assert "did you mean pythia-160m?" in capsys.readouterr().err


def test_along_a_run_of_lawa_train_the_losses_are_its_own(tmp_path, settings, capsys):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    run = tmp_path / "run"
    assert main(["train", str(tmp_path / "c.yaml"), "--output", str(run)]) == 0
    text = ["--text", settings["data"]["store"], "--context", "16", "--limit", "8", "--batch", "4"]
    assert main(["follow", str(run), "--window", "3", *text, "--output", str(tmp_path / "out"), "--json"]) == 0
    capsys.readouterr()
    own = {
        (line["update"], name): loss
        for line in read(run / "metrics.jsonl")
        if line["kind"] == "evaluation"
        for name, loss in line["losses"].items()
        if name != "ema"
    }
    found = {
        (line["update"], name.replace("window3", "lawa")): loss
        for line in read(tmp_path / "out" / "metrics.jsonl")
        for name, loss in line.get("losses", {}).items()
    }
    assert len(own) == 5  # plain at 4, 8 and 12, the average from 8 on
    assert {one: found[one] for one in own} == pytest.approx(own, abs=1e-6)
    tokens = {line["tokens"] for line in read(tmp_path / "out" / "metrics.jsonl")}
    assert tokens == {4 * 16 * update for update in range(2, 13, 2)}
