"""Averages along a folder of checkpoints have the losses of averages on disk; killed, refused, reported."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import lawa
from lawa.errors import LawaError, UsageError
from lawa.records import read
from lawa.report.build import build
from lawa.trajectories import follow_walk
from lawa.trajectories.follow import Following, Request
from lawa.trajectories.follow_text import Evaluation
from trajectories import following

NAMES = ["plain", "window3", "window3-linear", "window2-spacing2"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    made = tmp_path_factory.mktemp("followed")
    following.folder(made / "run")
    following.text(made / "text.txt")
    return made


def request(place, **changes):
    evaluation = Evaluation(text=str(place / "text.txt"), context=64, batch=4)
    values = {"trajectory": [str(place / "run")], "steps": None, "windows": (3,), "evaluation": evaluation, **changes}
    return Request(**values)


def lines(output):
    return [line for line in read(output / "metrics.jsonl") if line["kind"] == "evaluation"]


def losses(output):
    return {(line["update"], name): loss for line in lines(output) for name, loss in line["losses"].items()}


def literal_loss(directory, text):
    """As transformers loads and tokenizes: mean nats of every token after the first end of text, in fp64."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    ids = torch.tensor([0, *tokenizer(text.read_text())["input_ids"], 0])
    total = 0.0
    for start in range(0, len(ids) - 1, 64):
        part = ids[start : start + 65]
        with torch.no_grad():
            logits = model(input_ids=part[None, :-1]).logits[0].double()
        total += float(torch.nn.functional.cross_entropy(logits, part[1:], reduction="sum"))
    return total / (len(ids) - 1)


def test_the_losses_are_those_of_averages_on_disk(place, tmp_path):
    output = tmp_path / "out"
    wanted = request(place, families=("uniform", "linear"))
    found = Following(wanted, output).run()
    done = losses(output)
    assert list(done) == [
        *((step, "plain") for step in (1000, 2000)),
        *((step, name) for step in (3000, 4000, 5000, 6000) for name in NAMES[:3]),
    ]
    averages = lawa.average(
        place / "run", rolling=True, window=3, coefficients=["uniform", "linear"], output=tmp_path / "averages"
    )
    for path in averages:
        family, step = path.parts[-2:]
        name = "window3" if family == "uniform" else "window3-linear"
        assert done[int(step.removeprefix("step")), name] == pytest.approx(
            literal_loss(path, place / "text.txt"), abs=1e-6
        )
    assert done[6000, "plain"] == pytest.approx(literal_loss(place / "run" / "step6000", place / "text.txt"), abs=1e-6)
    assert [(one["step"], one["average"]) for one in found[:2]] == [(3000, "window3"), (4000, "window3")]
    assert json.loads((output / "results.json").read_text())["results"] == found
    for one in found:
        assert one["gain"] == done[one["step"], "plain"] - done[one["step"], one["average"]]


def test_what_a_record_has(place, tmp_path):
    Following(request(place, windows=(2,), spacings=(2,)), tmp_path / "out").run()
    line = next(line for line in lines(tmp_path / "out") if "window2-spacing2" in line["losses"])
    assert (line["update"], line["inputs"], line["snapshots"]) == (3000, [1000, 3000], {"window2-spacing2": 2})
    [loss] = line["losses"].values()
    assert line["perplexity"] == pytest.approx(math.exp(loss))
    tokens = len(following.TEXT) + 1
    assert line["bits_per_byte"] == pytest.approx(loss / math.log(2) * tokens / len(following.TEXT))
    assert line["tokens"] is None  # nobody knows a folder's batch
    ended = list(read(tmp_path / "out" / "metrics.jsonl"))[-1]
    assert set(ended["seconds"]) == {"fetching", "loading", "averaging", "evaluation"}


@pytest.mark.parametrize("host_bytes", [10**9, 250_000, 0])
def test_snapshots_in_memory_and_mapped_have_the_same_bits(place, tmp_path, host_bytes):
    following_it = Following(request(place, host_bytes=host_bytes), tmp_path / "out")
    mapped = sum(stage.mapped for plan in following_it.plans for stage in plan.stages)
    assert mapped == {10**9: 0, 250_000: 2, 0: 6}[host_bytes]
    following_it.run()
    Following(request(place, host_bytes=10**9), tmp_path / "other").run()
    assert losses(tmp_path / "out") == losses(tmp_path / "other")


def test_each_checkpoint_is_read_once_and_never_more_are_held_than_told(place, tmp_path, monkeypatch):
    read_, held = [], []
    load, average = follow_walk.load, follow_walk.average
    monkeypatch.setattr(follow_walk, "load", lambda catalog: read_.append(catalog.label) or load(catalog))
    monkeypatch.setattr(
        follow_walk, "average", lambda given, *a, **k: held.append(len(given)) or average(given, *a, **k)
    )
    made = Following(request(place, spacings=(1, 2), windows=(2,)), tmp_path / "out")
    assert made.plans[0].held == 3
    made.run()
    assert read_ == [f"run step {step}" for step in following.STEPS]
    assert held == [2] * 9


def test_a_failure_keeps_what_is_recorded_and_the_next_does_the_rest(place, tmp_path, monkeypatch):
    average, times = follow_walk.average, []

    def failing(*given, **more):
        times.append(1)
        if len(times) == 3:
            raise LawaError("the third fails")
        return average(*given, **more)

    monkeypatch.setattr(follow_walk, "average", failing)
    with pytest.raises(LawaError, match="the third fails"):
        Following(request(place), tmp_path / "out").run()
    before = (tmp_path / "out" / "metrics.jsonl").read_text()
    assert len(before.splitlines()) == 5 + 2
    monkeypatch.undo()
    again = Following(request(place), tmp_path / "out")
    assert [stage.step for stage in again.plans[0].stages] == [3000, 4000, 5000, 6000]
    assert [stage.due for stage in again.plans[0].stages] == [(), (), ("window3",), ("plain", "window3")]
    again.run()
    whole = (tmp_path / "out" / "metrics.jsonl").read_text()
    assert whole.startswith(before)
    Following(request(place), tmp_path / "straight").run()
    assert losses(tmp_path / "out") == losses(tmp_path / "straight")


def test_what_a_kill_left_of_a_line_is_cut_off(place, tmp_path):
    Following(request(place), tmp_path / "out").run()
    metrics = tmp_path / "out" / "metrics.jsonl"
    whole = metrics.read_bytes().splitlines(keepends=True)
    metrics.write_bytes(b"".join(whole[:4]) + whole[4][:20])
    Following(request(place), tmp_path / "out").run()
    assert metrics.read_bytes().splitlines()[:-1] == b"".join(whole).splitlines()[:-1]


def test_a_finished_one_is_told_again_without_any_work(place, tmp_path, monkeypatch):
    found = Following(request(place), tmp_path / "out").run()
    monkeypatch.setattr(follow_walk, "load", None)
    assert Following(request(place), tmp_path / "out").run() == found
    assert len(list(read(tmp_path / "out" / "metrics.jsonl"))) == 6 + 4 + 1


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"windows": (2,)}, "its averages"),
        ({"steps": "1000:5000:1000"}, r"its steps differ|its steps"),
        ({"families": ("linear",)}, "its averages"),
        ({"accumulate": "float64"}, "its averages window3"),
        ({"evaluation": "context"}, "its evaluation context is 64 and not 32"),
        ({"evaluation": "text"}, "its text text is text.txt and not other.txt"),
    ],
)
def test_another_request_in_the_same_place_is_refused(place, tmp_path, changes, sentence):
    Following(request(place), tmp_path / "out").run()
    (tmp_path / "other.txt").write_text("other")
    for name, evaluation in (
        ("context", Evaluation(text=str(place / "text.txt"), context=32)),
        ("text", Evaluation(text=str(tmp_path / "other.txt"), context=64)),
    ):
        if changes.get("evaluation") == name:
            changes = {"evaluation": evaluation}
    before = (tmp_path / "out" / "metrics.jsonl").read_bytes()
    with pytest.raises(UsageError, match=f"out holds another follow: {sentence}.*choose another --output"):
        Following(request(place, **changes), tmp_path / "out").run()
    assert (tmp_path / "out" / "metrics.jsonl").read_bytes() == before


def test_other_budgets_and_batches_are_the_same_request(place, tmp_path):
    found = Following(request(place), tmp_path / "out").run()
    evaluation = Evaluation(text=str(place / "text.txt"), context=64, batch=1)
    assert Following(request(place, evaluation=evaluation, host_bytes=0), tmp_path / "out").run() == found


def test_a_checkpoint_that_changed_is_another_request(tmp_path):
    run = following.folder(tmp_path / "run", [1000, 2000, 3000])
    following.text(tmp_path / "text.txt")
    Following(request(tmp_path), tmp_path / "out").run()
    (run / "step2000" / "pytorch_model.bin").write_bytes(following.bin_file(following.weights(7000)))
    with pytest.raises(UsageError, match="its contents 2000 is"):
        Following(request(tmp_path), tmp_path / "out").run()


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"steps": "1000:7000:1000"}, LawaError, "has no checkpoint of step 7000; it has 1000, 2000"),
        ({"windows": (7,)}, UsageError, "window7 spans 7 steps, 1000 updates apart"),
        ({"spacings": (3,)}, UsageError, "window3-spacing3 spans 7 steps, 3000 updates apart"),
        ({"steps": "1000"}, UsageError, "there is one step"),
        (
            {"evaluation": Evaluation(text="nowhere.txt")},
            UsageError,
            "--text nowhere.txt is no token store and no text",
        ),
        ({"host_bytes": -1}, UsageError, "host_bytes=-1"),
        ({"workers": 0}, UsageError, "workers=0"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(place, tmp_path, changes, error, sentence):
    with pytest.raises(error, match=sentence):
        Following(request(place, **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_place_that_is_no_follow_is_left_alone(place, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(UsageError, match="exists already and is no follow"):
        Following(request(place), tmp_path / "out").run()


def test_one_process_at_a_time(place, tmp_path):
    from lawa.trajectories.request import alone

    with alone(tmp_path / "out"), pytest.raises(LawaError, match="another process works in"):
        Following(request(place), tmp_path / "out").run()


def test_a_checkpoint_that_is_cut_off_is_named(tmp_path):
    run = following.folder(tmp_path / "run", [1000, 2000, 3000])
    following.text(tmp_path / "text.txt")
    made = Following(request(tmp_path), tmp_path / "out")
    file = run / "step3000" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(LawaError, match="step3000"):
        made.run()
    assert len(lines(tmp_path / "out")) == 2


def test_the_report_shows_it(place, tmp_path):
    found = Following(request(place, families=("uniform", "linear")), tmp_path / "out").run()
    report = build([tmp_path / "out"], tmp_path / "report")
    arms = {arm.label: arm for arm in report.findings.arms}
    assert list(arms) == ["plain", "window3", "window3-linear"]
    assert arms["window3"].curve.updates == (3000, 4000, 5000, 6000)
    assert arms["window3"].what == "window 3, every 1000, uniform"
    assert arms["window3-linear"].curve.losses == tuple(
        one["loss"] for one in found if one["average"] == "window3-linear"
    )
    assert arms["window3"].snapshots == 3
    html = report.page.read_text()
    figures = json.loads(html.split('<script type="application/json" id="figures">')[1].split("</script>")[0])
    assert [figure["id"] for figure in figures] == ["validation", "leads"]
    leads = figures[1]
    assert [trace["name"] for trace in leads["data"]] == ["window3", "window3-linear"]
    assert leads["data"][0]["y"] == [one["ahead"] for one in found if one["average"] == "window3"]
    assert 'id="training"' not in html
    assert not any("unfinished" in note for note in report.findings.notes)


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_where_it_was(place, tmp_path):
    arguments = [str(place / "run"), "--window", "3", "--text", str(place / "text.txt"), "--context", "64"]
    command = [sys.executable, str(Path(following.__file__)), *arguments, "--output", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    for kills in (2, 3):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout is not None
            for _ in range(kills):
                process.stdout.readline()
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
    recorded = losses(tmp_path / "out")
    assert 2 <= len(recorded) <= 4
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    worked = [line for line in done.stdout.splitlines() if " of run step " in line]
    assert len(worked) == 10 - len(recorded)
    Following(request(place), tmp_path / "straight").run()
    assert losses(tmp_path / "out") == losses(tmp_path / "straight")
