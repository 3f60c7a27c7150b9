"""lawa evaluate: what it prints where, how it exits, and that every setting arrives."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import yaml
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from lawa.cli import evaluate, main
from lawa.data.tokenizer import train
from lawa.evaluation import tasks
from lawa.offline.windows import Windows


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    config = GPTNeoXConfig(
        vocab_size=257, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=16, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    for step in (100, 200, 300):
        model = GPTNeoXForCausalLM(config)
        model.save_pretrained(tmp_path / "run" / f"step{step}")
        train(["x"], 257).save_pretrained(tmp_path / "run" / f"step{step}")
    (tmp_path / "book.txt").write_text("a text of bytes")
    return tmp_path / "run"


def test_a_line_a_result_on_stdout_and_notes_on_stderr(run, capsys):
    assert main(["evaluate", "run", "--window", "1,2", "--text", "book.txt"]) == 0
    shown = capsys.readouterr()
    names = [line.split("  ")[0] for line in shown.out.splitlines()]
    assert names == ["window1/step00000100", "window1/step00000200", "window2/step00000200", "window1/step00000300",
                     "window2/step00000300"]  # fmt: skip
    _, text, loss, perplexity, bits, tokens = shown.out.splitlines()[0].split("  ")
    assert (text, tokens) == ("book.txt", "tokens 16")
    assert 5 < float(loss.removeprefix("loss ")) < 6.5
    assert 150 < float(perplexity.removeprefix("perplexity ")) < 600
    assert 7.5 < float(bits.removeprefix("bits/byte ")) < 10
    assert "no whole window of 2 ends at the first 1 of the 3 steps" in shown.err


def test_json_is_all_that_is_printed_and_records_are_kept(run, capsys):
    command = ["evaluate", "run/step100", "run/step300", "--text", "book.txt", "--output", "records", "--json"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert [record["name"] for record in found] == ["run/step100", "run/step300"]
    assert main(command) == 0
    again = json.loads(capsys.readouterr().out)
    assert [record["again"] for record in again] == [True, True]
    assert [record["score"] for record in again] == [record["score"] for record in found]


def test_every_setting_arrives(run, monkeypatch):
    given = {"preshuffled": {"files": ["x"]}}
    Path("b.yaml").write_text(yaml.safe_dump(given))
    monkeypatch.setattr("lawa.data.batches.open_batches", lambda values: values)
    command = [
        "run", "org/x@main", "--text", "a", "--text", "b", "--batches", "b.yaml", "--updates", "3:5", "--tasks", "t,u",
        "--tasks", "v", "--include-path", "mine", "--fewshot", "3", "--context", "8", "--limit", "4", "--steps", "1:9",
        "--before", "8", "--last", "2", "--window", "1,3", "--spacing", "2", "--coefficients", "linear",
        "--coefficients", "ema:0.5", "--accumulate", "float64", "--out-dtype", "bfloat16", "--allow-duplicates",
        "--dtype", "float16", "--device", "cuda:1", "--batch", "5", "--config", "c", "--tokenizer", "k", "--output",
        "o", "--offline",
    ]  # fmt: skip
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    asked = evaluate._asked(parser.parse_args(command))
    assert asked.inputs == ["run", "org/x@main"]
    assert (asked.selection.steps, asked.selection.before, asked.selection.last) == ("1:9", 8, 2)
    assert asked.windows == Windows(sizes=(1, 3), spacing=2, rolling=True, families=["linear", {"ema": 0.5}])
    assert asked.batches == [("b.yaml", given, range(3, 6))]
    assert (asked.texts, asked.tasks, asked.include) == (["a", "b"], ["t", "u", "v"], ["mine"])
    assert (asked.fewshot, asked.context, asked.limit, asked.batch) == (3, 8, 4, 5)
    assert (asked.accumulate, asked.out_dtype, asked.dtype, asked.device) == (
        "float64",
        "bfloat16",
        "float16",
        "cuda:1",
    )
    assert (asked.config, asked.tokenizer, asked.output) == ("c", "k", Path("o"))
    assert asked.allow_duplicates
    assert asked.offline


def test_tasks_have_a_line_each_with_their_metrics(run, monkeypatch, capsys):
    results = {"piqa": {"alias": "piqa", "acc,none": 0.5, "acc_stderr,none": 0.125, "f1,strict": 1e6, "n,none": "N/A"}}
    monkeypatch.setattr(tasks.Tasks, "__init__", lambda self, names, include: setattr(self, "names", names))
    monkeypatch.setattr(tasks.Tasks, "identity", {"lm_eval": "0", "included": ""})
    monkeypatch.setattr(tasks.Tasks, "run", lambda *_, **__: {"results": results})
    assert main(["evaluate", "run/step100", "--tasks", "piqa"]) == 0
    assert capsys.readouterr().out == "run/step100  piqa  acc 0.5000 ± 0.1250  f1,strict 1e+06\n"


def test_a_window_is_numbers(capsys):
    with pytest.raises(SystemExit) as left:
        main(["evaluate", "run", "--text", "book.txt", "--window", "two"])
    assert left.value.code == 2
    assert "argument --window: 'two' is no whole number; write 5, or 3,5,10" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["run"], 2, "nothing to evaluate on was named; give --text, --batches or --tasks"),
        (["run", "--text", "nowhere"], 1, "nowhere does not exist"),
        (["nowhere", "--text", "book.txt"], 1, "nowhere does not exist; name a checkpoint"),
        (["run", "--text", "book.txt", "--window", "4"], 2, "a window of 4, spacing 1, spans 4 checkpoints"),
        (["run", "--text", "book.txt", "--coefficients", "linear"], 2, "name their size (--window K)"),
        (["run", "--text", "book.txt", "--include-path", "x"], 2, "name them with --tasks"),
        (["run", "--batches", "none.yaml", "--updates", "1:2"], 2, "--batches none.yaml cannot be read"),
        (["run", "--batches", "none.yaml"], 2, "must be A:B, the first and the last update"),
        (["run", "--text", "book.txt", "--device", "gpu?"], 2, "device='gpu?' is no device"),
    ],
)
def test_mistakes_get_one_sentence_and_a_code(run, capsys, arguments, code, sentence):
    assert main(["evaluate", *arguments]) == code
    shown = capsys.readouterr()
    assert sentence in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""
