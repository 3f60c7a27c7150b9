"""The driver, on a real (small) text, model and run directory."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lawa import records
from lawa.checkpoints.find import step_directories
from lawa.checkpoints.publish import verify
from lawa.errors import LawaError, UsageError
from lawa.pretrain import run as runs
from lawa.pretrain.directory import alone
from lawa.pretrain.loop import Loop
from pretrain.driving import Killed, assert_same, killed_in, quiet, train, weights
from twins import array, uniform

REPLACE = {"averaging": {"mode": "replace", "replace_with": "lawa"}}


@pytest.fixture(scope="module")
def evaluated(settings, tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "evaluated"
    return directory, train(settings, directory)


@pytest.fixture(scope="module")
def replaced(settings, tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "replaced"
    return directory, train(settings, directory, **REPLACE)


def read(run, kind):
    return [record for record in records.read(run / "metrics.jsonl") if record["kind"] == kind]


def test_every_checkpoint_and_average_loads_with_transformers(evaluated):
    run, _ = evaluated
    directories = [run / "final", *step_directories(run / "checkpoints").values()]
    for name in ("lawa", "ema"):
        directories += step_directories(run / "averages" / name).values()
    assert len(directories) == 1 + 6 + 4 + 6  # the window is full from its third capture on
    for directory in directories:
        verify(directory)
        model, info = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
        assert not any(info.values()), (directory, info)
        assert AutoTokenizer.from_pretrained(directory).eos_token == "<|endoftext|>"
        own = model.state_dict()
        saved = weights(directory)
        # Newer transformers call the head lm_head, and store it under its old name.
        assert_same({name: own.get(name, own.get("lm_head.weight")) for name in saved}, saved)


def test_the_loops_averages_are_those_of_its_checkpoints_bit_for_bit(evaluated):
    run, _ = evaluated
    checkpoints = step_directories(run / "checkpoints")
    averages = step_directories(run / "averages" / "lawa")
    assert list(averages) == [6, 8, 10, 12]
    for update, directory in averages.items():
        made = json.loads((directory / "provenance.json").read_text())
        assert made["snapshots"] == [update - 4, update - 2, update]
        snapshots = [weights(checkpoints[step]) for step in made["snapshots"]]
        expected = {name: uniform([array(one[name]) for one in snapshots]) for name in snapshots[0]}
        assert_same(weights(directory), expected)


def test_evaluating_changes_nothing_about_training(evaluated, settings, tmp_path):
    run, _ = evaluated
    train(settings, tmp_path / "plain", averaging={"mode": "none"})
    assert_same(weights(tmp_path / "plain" / "final"), weights(run / "final"))
    losses = [record["losses"]["plain"] for record in read(tmp_path / "plain", "evaluation")]
    assert losses == [record["losses"]["plain"] for record in read(run, "evaluation")]


def test_the_same_configuration_gives_the_same_bits_and_another_seed_does_not(evaluated, settings, tmp_path):
    run, _ = evaluated
    train(settings, tmp_path / "again")
    assert_same(weights(tmp_path / "again" / "final"), weights(run / "final"))
    train(settings, tmp_path / "other", seed=1)
    assert not torch.equal(
        weights(tmp_path / "other" / "final")["gpt_neox.embed_in.weight"],
        weights(run / "final")["gpt_neox.embed_in.weight"],
    )


def test_records_say_what_happened(evaluated):
    run, losses = evaluated
    assert [record["update"] for record in read(run, "train")] == [2, 4, 6, 8, 10, 12]
    evaluations = read(run, "evaluation")
    assert [record["update"] for record in evaluations] == [4, 8, 12]
    assert [sorted(record["losses"]) for record in evaluations] == [
        ["ema", "plain"],
        ["ema", "lawa", "plain"],
        ["ema", "lawa", "plain"],
    ]
    assert evaluations[-1]["snapshots"] == {"lawa": 3, "ema": 12}
    assert evaluations[-1]["losses"] == losses
    assert evaluations[0]["tokens"] == 4 * 4 * 16
    assert len(read(run, "end")) == 1
    described = json.loads((run / "run.json").read_text())
    assert described["averages"] == {"lawa": "window 3, every 2, uniform", "ema": "EMA beta 0.9, every 1"}
    assert described["versions"]["transformers"]


def test_the_recorded_losses_are_those_of_the_published_weights(evaluated, settings):
    """Read back by transformers, on the same held-out sequences."""
    run, losses = evaluated
    from lawa.data.order import validation_sequences
    from lawa.data.store import open_store
    from lawa.evaluation.loss import evaluate

    held_out = validation_sequences(open_store(settings["data"]["store"]).validation, 16, 8)
    for name, directory in {"plain": run / "final", "lawa": run / "averages" / "lawa" / "step00000012"}.items():
        model = AutoModelForCausalLM.from_pretrained(directory)
        assert evaluate(model, held_out, batch=4) == losses[name]


def test_replacement_at_the_last_update_is_delivered(replaced):
    run, losses = replaced
    replacements = read(run, "replacement")
    assert [record["update"] for record in replacements] == [6, 8, 10, 12]
    assert all(record["applied"] and record["snapshots"] == 3 for record in replacements)
    assert [record["loss"] is not None for record in replacements] == [False, True, False, True]
    average = step_directories(run / "averages" / "lawa")[12]
    assert_same(weights(run / "final"), weights(average))
    assert losses["replaced"] == losses["lawa"] == replacements[-1]["loss"]


def test_replaced_weights_are_what_the_next_update_starts_from(evaluated, replaced):
    """Until the first replacement the two runs are one; after it they part."""
    plain, mine = (step_directories(run / "checkpoints") for run, _ in (evaluated, replaced))
    for update in (2, 4, 6):
        assert_same(weights(plain[update]), weights(mine[update]))
    assert not torch.equal(weights(plain[8])["gpt_neox.embed_in.weight"], weights(mine[8])["gpt_neox.embed_in.weight"])


def test_clear_fills_the_window_anew(settings, tmp_path):
    averaging = {"mode": "replace", "replace_with": "lawa", "after_replace": "clear"}
    train(settings, tmp_path / "run", averaging=averaging)
    assert [record["update"] for record in read(tmp_path / "run", "replacement")] == [6, 12]


def test_strength_below_one_is_evaluated_by_itself(settings, tmp_path):
    losses = train(settings, tmp_path / "run", averaging={**REPLACE["averaging"], "strength": 0.5})
    assert losses["replaced"] not in (losses["plain"], losses["lawa"])
    assert min(losses["plain"], losses["lawa"]) - 1 < losses["replaced"] < max(losses["plain"], losses["lawa"]) + 1


@pytest.mark.parametrize("averaging", [{}, REPLACE["averaging"], {**REPLACE["averaging"], "moments": "average"}])
@pytest.mark.parametrize("killed_at", [5, 6, 7, 12])
def test_a_resumed_run_has_the_bits_of_one_never_interrupted(settings, tmp_path, monkeypatch, averaging, killed_at):
    sections = {"averaging": averaging, "checkpoints": {"every": 3}}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(settings, whole, **sections)
    step = Loop.step
    replace = Loop.replace

    def die_in_step(self, t):
        if t == killed_at:
            raise Killed
        return step(self, t)

    def die_before_replacing(self):
        if self.position.update == killed_at:
            raise Killed
        return replace(self)

    # At a checkpoint (6, 12) the kill falls between it and the replacement; elsewhere inside an update.
    with monkeypatch.context() as patched:
        if killed_at % 3:
            patched.setattr(Loop, "step", die_in_step)
        else:
            patched.setattr(Loop, "replace", die_before_replacing)
        with pytest.raises(Killed):
            train(settings, parts, **sections)
    runs.resume(parts, console=quiet())
    assert_same(weights(parts / "final"), weights(whole / "final"))
    for kind in ("train", "evaluation", "replacement"):
        assert read(parts, kind) == read(whole, kind)
    for name in ("lawa", "ema"):
        left, right = (step_directories(run / "averages" / name) for run in (parts, whole))
        assert list(left) == list(right)
        for update in left:
            assert_same(weights(left[update]), weights(right[update]))
    assert json.loads((parts / "run.json").read_text())["resumed"][0]["update"] == killed_at // 3 * 3


def test_only_the_latest_two_checkpoints_keep_their_training_state(evaluated):
    run, _ = evaluated
    kept = [step for step, path in step_directories(run / "checkpoints").items() if (path / "training").exists()]
    assert kept == [10, 12]


def test_old_checkpoints_and_averages_go_when_asked(settings, tmp_path):
    train(settings, tmp_path / "run", checkpoints={"keep": 2, "save_averages": "last"})
    assert list(step_directories(tmp_path / "run" / "checkpoints")) == [10, 12]
    assert list(step_directories(tmp_path / "run" / "averages" / "lawa")) == [12]
    train(settings, tmp_path / "bare", checkpoints={"save_averages": "none"})
    assert not (tmp_path / "bare" / "averages").exists()


def test_micro_batches_change_the_rounding_and_nothing_else(evaluated, settings, tmp_path):
    run, _ = evaluated
    train(settings, tmp_path / "run", training={"micro_batch": 2})
    for name, expected in weights(run / "final").items():
        torch.testing.assert_close(weights(tmp_path / "run" / "final")[name], expected, rtol=1e-3, atol=1e-4)


def test_the_table_says_what_it_will_cost(settings, tmp_path):
    console = quiet()
    train(settings, tmp_path / "run", console, **REPLACE)
    shown = console.file.getvalue()
    assert "lawa: window 3, every 2, uniform → replaces the weights" in shown
    assert "12 updates of 64 tokens = 768" in shown
    assert "3 snapshots; 0 B on the device" in shown
    # 6 checkpoints; the window is ready at 4 of them, the EMA at 6; the final model; Adam's moments and the averager's.
    files = {file.stat().st_ino: file.stat().st_size for file in (tmp_path / "run").rglob("*.safetensors")}
    assert "with 10 saved averages and the final model" in shown
    said = float(re.search(r"disk\s*│\s*([\d.]+) MB", shown)[1]) * 1e6
    assert said == pytest.approx(sum(files.values()), rel=0.2)  # each file has a header, and here is small
    # The weights, two averages, Adam's moments, the EMA and one new snapshot.
    assert "469.5 kB in host memory" in shown


def test_the_table_counts_the_last_average_once(settings, tmp_path):
    console = quiet()
    train(settings, tmp_path / "run", console, checkpoints={"save_averages": "last"})
    assert "with 2 saved averages and the final model" in console.file.getvalue()


def test_what_has_no_effect_is_said(settings, tmp_path):
    console = quiet()
    train(settings, tmp_path / "run", console, training={"schedule": "constant", "min_lr": 1e-3, "updates": 6})
    assert "warning: training.min_lr=0.001 has no effect" in console.file.getvalue()


def test_published_models_use_their_cache(evaluated):
    """Training does without; whoever generates with the model does not."""
    assert json.loads((evaluated[0] / "final" / "config.json").read_text())["use_cache"] is True


def test_seconds_add_up_to_the_time_that_training_took(settings, tmp_path, monkeypatch):
    """On a clock of our own: what a GPU still has to do when another clock starts is training."""
    now = 0.0

    def wait(self):
        nonlocal now
        now += 1.0

    monkeypatch.setattr(Loop, "wait", wait)
    monkeypatch.setattr("lawa.pretrain.loop.time.perf_counter", lambda: now)
    train(settings, tmp_path / "run", training={"updates": 6}, checkpoints={"every": 6, "save_averages": "none"})
    # 6 captures, 2 evaluations of the plain weights and the EMA, 1 of the window, 1 checkpoint and
    # the wait for the last one.
    assert read(tmp_path / "run", "end")[0]["seconds"] == {
        "training": 13.0,
        "averaging": 6.0,
        "evaluation": 5.0,
        "checkpoints": 2.0,
    }


def test_a_diverged_run_stops_with_a_sentence(settings, tmp_path):
    with pytest.raises(LawaError, match="the training loss is nan at update"):
        train(settings, tmp_path / "run", training={"lr": 1e30, "clip": 0, "updates": 40})


def test_wrong_places(evaluated, settings, tmp_path):
    run, _ = evaluated
    with pytest.raises(UsageError, match="is finished; choose another --output"):
        train(settings, run)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(UsageError, match="exists already and is no run"):
        train(settings, tmp_path / "full")
    with pytest.raises(LawaError, match=r"is finished; its model is in .*\. To train on, give --training\.updates"):
        runs.resume(run, console=quiet())
    with pytest.raises(UsageError, match="is no run"):
        runs.resume(tmp_path, console=quiet())
    with pytest.raises(LawaError, match="nowhere does not exist"):
        train(settings, tmp_path / "new", data={"train": [str(tmp_path / "nowhere")], "store": str(tmp_path / "s")})
    assert not (tmp_path / "new").exists()  # so that the mended command can be given again
    # A mistake found after the text was tokenized keeps the tokens, and the mended command uses them.
    with pytest.raises(UsageError, match="is no field of"):
        train(settings, tmp_path / "new", data={"store": None}, model={"overrides": {"hiden_size": 3}})
    assert (tmp_path / "new" / "store").exists()
    train(settings, tmp_path / "new", data={"store": None}, training={"updates": 6})


def test_a_run_killed_before_its_first_checkpoint_is_to_be_removed_whoever_asks(settings, tmp_path, monkeypatch):
    killed_in(monkeypatch, settings, tmp_path / "run", at=1)
    for ask in (lambda: train(settings, tmp_path / "run"), lambda: runs.resume(tmp_path / "run", console=quiet())):
        with pytest.raises(
            UsageError, match="stopped before its first checkpoint; remove it and start anew, or choose"
        ):
            ask()


def test_a_run_killed_later_is_to_be_gone_on_with(settings, tmp_path, monkeypatch):
    killed_in(monkeypatch, settings, tmp_path / "run", at=3)
    with pytest.raises(UsageError, match=r"exists already; go on with it \(lawa train --resume"):
        train(settings, tmp_path / "run")


def test_one_process_a_run(settings, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    with alone(tmp_path / "run"), pytest.raises(LawaError, match="is being trained by another process"):
        train(settings, tmp_path / "run")
    killed_in(monkeypatch, settings, tmp_path / "run", at=3)
    with alone(tmp_path / "run"), pytest.raises(LawaError, match="is being trained by another process"):
        runs.resume(tmp_path / "run", console=quiet())


def test_going_on_needs_the_store_and_not_the_text(settings, corpus, tmp_path, monkeypatch):
    text = shutil.copytree(corpus, tmp_path / "text")
    monkeypatch.chdir(tmp_path)
    data = {"train": ["text"], "store": "store"}
    killed_in(monkeypatch, settings, tmp_path / "run", at=3, data=data)
    shutil.rmtree(text)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    runs.resume(tmp_path / "run", console=quiet())


def test_other_tokens_than_the_run_began_with_are_refused(settings, tmp_path, monkeypatch):
    killed_in(monkeypatch, settings, tmp_path / "run", at=3, data={"store": str(tmp_path / "store")})
    shutil.rmtree(tmp_path / "store")
    train(settings, tmp_path / "other", data={"store": str(tmp_path / "store"), "seed": 5})
    with pytest.raises(LawaError, match="holds other tokens than the run began with"):
        runs.resume(tmp_path / "run", console=quiet())


def test_another_number_of_threads_is_recorded_and_said(settings, tmp_path, monkeypatch):
    killed_in(monkeypatch, settings, tmp_path / "run", at=3)
    console = quiet()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    runs.resume(tmp_path / "run", console=console)
    assert "warning: the run began on 1 threads and goes on on 7" in console.file.getvalue()
    described = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (described["threads"], described["resumed"][0]["threads"]) == (1, 7)


def test_a_checkpoint_may_come_before_an_averages_first_capture(settings, tmp_path):
    averages = {"lawa": {"window": 1, "every": 4, "min_window": None}, "ema": {"start": 5}}
    train(settings, tmp_path / "run", averaging={"averages": averages})
    assert list(step_directories(tmp_path / "run" / "averages" / "lawa")) == [4, 6, 8, 10, 12]
    assert list(step_directories(tmp_path / "run" / "averages" / "ema")) == [6, 8, 10, 12]


def test_a_gradient_that_is_not_finite_ends_the_run_before_anything_is_saved(settings, tmp_path, monkeypatch):
    """The loss of the same update is still finite: it is that of the weights before."""
    step = Loop.step

    def broken(self, t):
        lr, norm = step(self, t)
        return lr, norm * math.nan if t == 4 else norm

    monkeypatch.setattr(Loop, "step", broken)
    with pytest.raises(LawaError, match="the gradient norm is nan at update 4; earlier checkpoints are whole"):
        train(settings, tmp_path / "run")
    checkpoints = step_directories(tmp_path / "run" / "checkpoints")
    assert list(checkpoints) == [2]
    assert (checkpoints[2] / "training").exists()


def test_a_damaged_checkpoint_is_refused_by_name(evaluated, tmp_path):
    run, _ = evaluated
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    shutil.rmtree(copy / "final")
    state = copy / "checkpoints" / "step00000012" / "training" / "optimizer.safetensors"
    state.write_bytes(state.read_bytes()[:-1])
    with pytest.raises(
        LawaError, match=r"training/optimizer\.safetensors has \d+ bytes where .*go on from step00000010"
    ):
        runs.resume(copy, console=quiet())


def test_settings_the_model_does_not_know_are_refused(settings, tmp_path):
    with pytest.raises(UsageError, match=r"model\.overrides\.hiden_size is no field of transformers' GPTNeoXConfig"):
        train(settings, tmp_path / "run", model={"overrides": {"hiden_size": 3}})
    with pytest.raises(UsageError, match="is less than the tokenizer's"):
        train(settings, tmp_path / "run", model={"overrides": {"vocab_size": 10}})


@pytest.mark.parametrize(
    "model",
    [
        {"architecture": "llama", "overrides": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                                                "num_key_value_heads": 1, "intermediate_size": 32}},
        {"architecture": "gpt2", "overrides": {"hidden_size": 16, "n_layer": 1, "n_head": 2}},
    ],
)  # fmt: skip
def test_other_architectures(settings, tmp_path, model):
    """GPT-2's embeddings are tied: one entry, averaged once, saved once, tied when read back."""
    train({**settings, "model": model}, tmp_path / "run", **REPLACE)
    averages = step_directories(tmp_path / "run" / "averages" / "lawa")
    checkpoints = step_directories(tmp_path / "run" / "checkpoints")
    snapshots = [weights(checkpoints[step]) for step in (8, 10, 12)]
    assert_same(weights(averages[12]), {n: uniform([array(one[n]) for one in snapshots]) for n in snapshots[0]})
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "final")
    tied = loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert tied == (model["architecture"] == "gpt2")
    assert loaded.config.use_cache


def test_bf16_arithmetic_keeps_fp32_weights(settings, tmp_path):
    train(settings, tmp_path / "run", training={"precision": "bf16"})
    assert {tensor.dtype for tensor in weights(tmp_path / "run" / "final").values()} == {torch.float32}
