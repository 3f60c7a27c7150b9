"""Checkpoints and averages on texts: the same as averaging on disk and evaluating that; nothing is done twice."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed import checkpoint as dcp
from transformers import AutoModelForCausalLM

import lawa
from checkpoints.formats.test_neox import write as write_neox
from evaluation.test_text import Counting
from hub_server import serving
from lawa.checkpoints.find import step_directories
from lawa.checkpoints.select import Found, Selection
from lawa.data.sources import TextSource
from lawa.data.store import build
from lawa.errors import LawaError, UsageError
from lawa.evaluation import run as runs
from lawa.evaluation.asked import Asked
from lawa.evaluation.run import Evaluating, evaluate
from lawa.evaluation.score import score
from lawa.evaluation.text import of_files
from lawa.offline import in_memory
from lawa.offline.windows import Windows
from lawa.records import read as read_records
from pretrain.driving import train


def losses(**asked):
    return {record["name"]: record["score"]["loss"] for record in evaluate(Asked(**asked))}


def expected(path, book, tokenizer, dtype=torch.float32):
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    return score(model, of_files([book], tokenizer, 32)).loss


def window(*sizes, spacing=1, families=("uniform",)):
    return Windows(sizes=sizes, spacing=spacing, rolling=True, families=families)


def test_checkpoints_are_evaluated_as_transformers_loads_them(checkpoints, book, tokenizer):
    paths = checkpoints()
    found = losses(inputs=paths, texts=[book])
    assert found == {str(path): expected(path, book, tokenizer) for path in paths}
    assert len(set(found.values())) == 3
    assert losses(inputs=[paths[0].parent], selection=Selection(last=1), texts=[book]) == {
        str(paths[2]): found[str(paths[2])]
    }
    half = losses(inputs=paths[:1], texts=[book], dtype="bfloat16")
    assert half == {str(paths[0]): expected(paths[0], book, tokenizer, torch.bfloat16)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_averages_are_those_that_would_be_written(checkpoints, book, tokenizer, tmp_path, dtype):
    paths = checkpoints(5, dtype=dtype)
    asked = {"spacing": 2, "coefficients": ["uniform", [0.25, 0.75]], "window": [2]}
    on_disk = {
        path.relative_to(tmp_path / "out").as_posix(): expected(path, book, tokenizer)
        for path in lawa.average(paths[0].parent, rolling=True, output=tmp_path / "out", **asked)
    }
    windows = window(2, spacing=2, families=("uniform", [0.25, 0.75]))
    found = losses(inputs=[paths[0].parent], windows=windows, texts=[book])
    assert found == on_disk
    assert len(found) == 6


def test_each_checkpoint_is_loaded_once_while_windows_slide(checkpoints, book, monkeypatch):
    paths = checkpoints(6)
    events, load, average = [], in_memory.load, in_memory.average
    monkeypatch.setattr(in_memory, "load", lambda one: events.append(one.label[-3:]) or load(one))
    monkeypatch.setattr(in_memory, "average", lambda some, *a, **k: events.append(len(some)) or average(some, *a, **k))
    found = losses(inputs=[paths[0].parent], windows=window(1, 3), texts=[book])
    assert list(found) == ["window1/step00000100", "window1/step00000200", "window1/step00000300",
                           "window3/step00000300", "window1/step00000400", "window3/step00000400",
                           "window1/step00000500", "window3/step00000500", "window1/step00000600",
                           "window3/step00000600"]  # fmt: skip
    assert events == ["100", "200", "300", 3, "400", 3, "500", 3, "600", 3]


def test_a_window_of_one_is_the_checkpoint_itself(checkpoints, book, tmp_path):
    paths = checkpoints()
    list(evaluate(Asked(inputs=paths, texts=[book], output=tmp_path / "records")))
    again = list(evaluate(Asked(inputs=paths, windows=window(1), texts=[book], output=tmp_path / "records")))
    assert all(record["again"] and record["average"] is None for record in again)


def test_what_is_recorded_is_not_done_again(checkpoints, book, tmp_path, monkeypatch):
    paths, output = checkpoints(), tmp_path / "records"
    asked = {"inputs": paths, "texts": [book], "output": output}
    first = list(evaluate(Asked(**asked, windows=window(2))))
    assert [record["again"] for record in first] == [False, False]
    assert json.loads(next(output.glob("step00000200.*.json")).read_text()) == {
        key: value for key, value in first[0].items() if key != "again"
    }
    assert {"score", "inputs", "average", "settings", "versions", "machine", "on"} <= first[0].keys()
    assert [len(one["sha256"]) for record in first for two in record["inputs"] for one in two["files"]] == [64] * 4

    def never(*_, **__):
        raise AssertionError("it was done before")

    with monkeypatch.context() as patched:
        patched.setattr(runs.in_memory, "load", never)
        shutil.move(paths[0].parent, tmp_path / "moved")  # the same content elsewhere is the same
        moved = [tmp_path / "moved" / path.name for path in paths]
        again = list(evaluate(Asked(**{**asked, "inputs": moved}, windows=window(2))))
        assert [{**record, "again": False} for record in again] == first
    asked["inputs"] = moved
    for change in (
        {"windows": window(2), "dtype": "bfloat16"}, {"windows": window(2), "out_dtype": "bfloat16"},
        {"windows": window(2), "context": 16}, {"windows": window(2), "limit": 1},
        {"windows": window(2, families=("linear",))}, {},
    ):  # fmt: skip
        assert not any(record["again"] for record in evaluate(Asked(**asked, **change))), change
    config = json.loads((moved[1] / "config.json").read_text())
    (moved[1] / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-3}))
    assert [record["again"] for record in evaluate(Asked(**asked))] == [True, False, True]


@pytest.mark.slow
def test_a_kill_loses_only_what_was_in_work(checkpoints, book, tmp_path):
    paths, output = checkpoints(4), tmp_path / "records"
    script = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom lawa.evaluation import run\n"
        "own = run.score\nleft = [2]\n"
        "def dying(*a, **k):\n    left[0] -= 1\n    if left[0] < 0: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return own(*a, **k)\nrun.score = dying\n"
        "list(run.evaluate(run.Asked(inputs=sys.argv[3:], texts=[sys.argv[1]], output=Path(sys.argv[2]))))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(book), str(output), *map(str, paths)])
    assert done.returncode == -signal.SIGKILL
    records = list(evaluate(Asked(inputs=paths, texts=[book], output=output)))
    assert [record["again"] for record in records] == [True, True, False, False]
    assert len(list(output.iterdir())) == 4


def test_the_drivers_own_losses_on_its_own_text(settings, tmp_path):
    run = tmp_path / "run"
    train(settings, run, data={"store": str(tmp_path / "store")}, checkpoints={"save_averages": "all"})
    told = {one["update"]: one["losses"] for one in read_records(run / "metrics.jsonl") if one["kind"] == "evaluation"}
    on = {"texts": [tmp_path / "store"], "limit": 8}
    for record in evaluate(Asked(inputs=[run], **on)):
        if record["step"] in told:
            assert record["score"]["loss"] == pytest.approx(told[record["step"]]["plain"], rel=1e-6)
            assert 0 < record["score"]["bits_per_byte"] < 8
    found = {r["step"]: r["score"]["loss"] for r in evaluate(Asked(inputs=[run], windows=window(3), **on))}
    assert found[12] == pytest.approx(told[12]["lawa"], rel=1e-6)
    assert len(step_directories(run / "checkpoints")) > 3


def test_a_store_of_another_tokenizer_is_refused(checkpoints, tmp_path, corpus):
    [path] = checkpoints(1)
    source = {"text": TextSource(paths=[str(corpus / "00.txt")])}
    how = {"sources": source, "validation": {"text": TextSource(paths=[str(corpus / "01.txt")])}}
    build(tmp_path / "other", **how, vocab_size=270)
    build(tmp_path / "own", **how, tokenizer=path)
    with pytest.raises(LawaError, match=r"ids in .*other are those of another tokenizer than .*step100 has"):
        losses(inputs=[path], texts=[tmp_path / "other"])
    assert len(losses(inputs=[path], texts=[tmp_path / "own"])) == 1
    assert len(losses(inputs=[path], texts=[tmp_path / "other"], tokenizer=tmp_path / "other" / "tokenizer")) == 1


def test_a_context_beyond_the_models_positions_is_refused(checkpoints, book):
    [path] = checkpoints(1)
    with pytest.raises(UsageError, match="context=33 is longer than the 32 positions of"):
        losses(inputs=[path], texts=[book], context=33)


def test_formats_without_a_configuration_are_evaluated_with_one(checkpoints, book, tmp_path, tokenizer, config):
    [path] = checkpoints(1)
    known = expected(path, book, tokenizer)
    state = AutoModelForCausalLM.from_pretrained(path).state_dict()
    write_neox(tmp_path / "neox", {name.replace("lm_head", "embed_out"): one for name, one in state.items()}, 2)
    with pytest.warns(UserWarning, match="torch.distributed is"):
        dcp.save({"model": state}, checkpoint_id=tmp_path / "dcp")
    torch.save(state, tmp_path / "state.pt")
    for other in ("neox", "dcp", "state.pt"):
        with pytest.raises(LawaError, match=r"has no tokenizer beside it|has no config.json"):
            losses(inputs=[tmp_path / other], texts=[book])
        for given in (path, path / "config.json"):
            found = losses(inputs=[tmp_path / other], texts=[book], config=given)
            assert found[str(tmp_path / other)] == pytest.approx(known, rel=1e-6)
    mixed = losses(inputs=[path, tmp_path / "dcp"], texts=[book], config=path, tokenizer=path)
    assert list(mixed.values()) == [known, known]


def test_revisions_of_the_hub_with_their_commits(checkpoints, book, tokenizer, tmp_path, monkeypatch):
    paths = checkpoints()
    content = [{file.name: file.read_bytes() for file in path.iterdir()} for path in paths]
    names = ("step1", "step2", "step3", "step9")
    repos = {"org/tiny": dict(zip(names, [*content, content[2]], strict=True))}
    with serving(repos, tmp_path / "cache", monkeypatch) as hub:
        asked = {"inputs": ["org/tiny"], "selection": Selection(steps="2:3"), "windows": window(2), "texts": [book]}
        [record] = evaluate(Asked(**asked))
        known = losses(inputs=paths[1:], windows=window(2), texts=[book])
        assert record["score"]["loss"] == known["step00000300"]
        assert [one["commit"] for one in record["inputs"]] == [hub.commit("org/tiny", f"step{n}") for n in (2, 3)]
        assert hub.fetched().count("model.safetensors") == 2
        [offline] = evaluate(Asked(**asked, offline=True))
        assert offline["score"] == record["score"]
        with pytest.raises(LawaError, match=r"org/tiny@step3 \(\w+\) and org/tiny@step9 \(\w+\) have the same"):
            Evaluating(Asked(inputs=["org/tiny"], windows=window(2), texts=[book]))


def test_names_are_resolved_by_whoever_knows_them(checkpoints, book):
    paths = checkpoints()

    def pythia(inputs, selection, *, trajectory, offline):
        assert (inputs, trajectory, offline) == (["pythia-tiny"], True, False)
        return [Found(label=path.name, step=int(path.name[4:]), path=path) for path in paths]

    asked = Asked(inputs=["pythia-tiny"], windows=window(2), texts=[book])
    assert [record["name"] for record in evaluate(asked, resolve=pythia)] == ["step00000200", "step00000300"]


def test_the_same_content_twice(checkpoints, book):
    paths = checkpoints()
    shutil.copytree(paths[1], paths[1].parent / "step250")
    inputs = [paths[0].parent]
    with pytest.raises(LawaError, match=r"step200 and .*step250 have the same content.*--allow-duplicates"):
        Evaluating(Asked(inputs=inputs, windows=window(2), texts=[book]))
    assert len(losses(inputs=inputs, windows=window(2), texts=[book], allow_duplicates=True)) == 3
    assert "step200 and" in Evaluating(Asked(inputs=inputs, texts=[book])).notes[0]


def test_batches_are_texts_too(checkpoints, config):
    [path] = checkpoints(1)
    [record] = evaluate(Asked(inputs=[path], batches=[("given", Counting(), range(3, 5))], tokenizer=path))
    assert record["on"]["text"] == "given"
    assert record["score"]["tokens"] == record["score"]["bytes"] == 64


def test_checkpoints_with_other_tokenizers_read_the_text_their_own_way(checkpoints, book, corpus):
    from lawa.data.tokenizer import train as train_tokenizer

    one, other = checkpoints(2)
    train_tokenizer([(corpus / "00.txt").read_text()], 280).save_pretrained(other)
    first, second = evaluate(Asked(inputs=[one, other], texts=[book]))
    assert first["score"]["tokens"] < second["score"]["tokens"]
    assert first["score"]["bytes"] == second["score"]["bytes"]
    assert first["on"]["digest"] != second["on"]["digest"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"vocab_size": 281}, "holds gpt_neox.embed_in.weight and 1 more in another shape than GPTNeoXForCausalLM"),
        ({"num_hidden_layers": 3}, "lacks gpt_neox.layers.2.attention.dense.bias and 11 more"),
        ({"num_hidden_layers": 1}, "holds gpt_neox.layers.1.attention.dense.bias and 11 more, for which"),
        ({"model_type": "strange"}, "transformers cannot read its configuration"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "is quantized"),
    ],
)
def test_weights_that_do_not_fit_are_named(checkpoints, book, change, sentence):
    [path] = checkpoints(1)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(LawaError, match=sentence):
        losses(inputs=[path], texts=[book])


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({}, "nothing to evaluate on"),
        ({"texts": ["x"], "dtype": "float64"}, "dtype='float64' must be one of"),
        ({"texts": ["x"], "context": 0}, "context=0 must be at least 1"),
        ({"texts": ["x"], "device": "tpu?"}, "device='tpu.' is no device"),
        ({"texts": ["x"], "include": ["y"]}, "name them with --tasks"),
        ({"texts": ["x"], "windows": Windows(sizes=(2,))}, "they are rolling"),
    ],
)
def test_what_cannot_be_meant(asked, sentence):
    with pytest.raises(UsageError, match=sentence):
        Asked(inputs=["run"], **asked)


def test_places_that_will_not_do(checkpoints, book, tmp_path):
    [path] = checkpoints(1)
    with pytest.raises(LawaError, match="nowhere does not exist; name text files"):
        losses(inputs=[path], texts=["nowhere"])
    with pytest.raises(LawaError, match=r"book.txt is a file; choose another --output"):
        losses(inputs=[path], texts=[book], output=book)
    with pytest.raises(UsageError, match="spans 2 checkpoints, and there are 1"):
        losses(inputs=[path], texts=[book], windows=window(2))
    assert not list(Path(tmp_path).glob(".*scratch*"))
