"""LawaCallback in real trainers of a tiny language model, against averages made by hand of the weights seen."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

from integrations.hub import hub
from integrations.tiny_hf import QUIET, Notes, checkpoints, mean, model, same, tokenizer, tokens, weights
from launching import launch
from lawa import EMA, LawaError, NonFiniteAverage, RunningMean, Window
from lawa.checkpoints.publish import verify
from lawa.integrations.transformers import LawaCallback, callback

ROOT = Path(__file__).parents[2]


def trainer_of(output: Path, *callbacks: TrainerCallback, lm: Any = None, **changes: Any) -> Trainer:
    own = {"eval_dataset": tokens(5, seed=2)}
    own |= {key: changes.pop(key) for key in [*changes] if key not in TrainingArguments.__dataclass_fields__}
    return Trainer(
        lm or model(), TrainingArguments(str(output), **(QUIET | changes)), train_dataset=tokens(24),
        callbacks=list(callbacks), **own,
    )  # fmt: skip


def loss_of(held: dict[str, np.ndarray], output: Path, **settings: Any) -> float:
    """The evaluation loss of a model with these weights."""
    lm = model()
    for name, parameter in lm.named_parameters():
        parameter.data.copy_(torch.from_numpy(held[name]))
    return trainer_of(output, lm=lm, **settings).evaluate()["eval_loss"]


def read(directory: Path) -> dict[str, np.ndarray]:
    return weights(AutoModelForCausalLM.from_pretrained(directory))


class At(TrainerCallback):
    """Calls `work(event's keywords)` after the update `step`."""

    def __init__(self, step: int, work: Any) -> None:
        self.step, self.work = step, work

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.work(**kwargs)


# ---- evaluation


def test_an_evaluation_has_the_metrics_of_the_model_and_of_the_average(tmp_path: Path) -> None:
    notes = Notes()
    trainer = trainer_of(tmp_path, notes, eval_strategy="steps", eval_steps=2)
    LawaCallback(mode="evaluate", every=1, window=3).attach(trainer)
    trainer.train()
    records = [record for record in trainer.state.log_history if "eval_loss" in record]
    assert [record["step"] for record in records] == [2, 4, 6]
    assert "eval_lawa_loss" not in records[0]  # two of three snapshots
    for record in records[1:]:
        held = [notes.ended[t] for t in range(record["step"] - 2, record["step"] + 1)]
        assert record["eval_loss"] == loss_of(held[-1], tmp_path)
        assert record["eval_lawa_loss"] == loss_of(mean(held), tmp_path)
        assert record["eval_lawa_loss"] != record["eval_loss"]
    assert same(weights(trainer.model), notes.ended[6])
    assert trainer.evaluate()["eval_lawa_loss"] == records[-1]["eval_lawa_loss"]


def test_several_averages_data_sets_and_metrics_each_by_its_name(tmp_path: Path) -> None:
    averages = {"w": Window(2, every=1), "e": EMA(0.5), "later": RunningMean(start=100)}
    trainer = trainer_of(
        tmp_path, eval_dataset={"a": tokens(4, seed=2), "b": tokens(4, seed=3)},
        compute_metrics=lambda one: {"first": float(one.predictions[0].ravel()[0])},
    )  # fmt: skip
    LawaCallback(mode="evaluate", averages=averages).attach(trainer)
    with pytest.warns(UserWarning, match="'later' .* gets 0 until the last update, 6: it will never be ready"):
        trainer.train()
    found = {name for name in trainer.evaluate() if name.endswith(("loss", "first"))}
    kinds = [f"{data}{of}" for data in "ab" for of in ("", "_w", "_e")]
    assert found == {f"eval_{kind}_{what}" for kind in kinds for what in ("loss", "first")}


def test_predictions_are_the_models_own(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    LawaCallback(mode="evaluate", every=1, window=2).attach(trainer)
    trainer.train()
    assert "test_loss" in trainer.predict(tokens(4)).metrics
    assert "test_lawa_loss" not in trainer.predict(tokens(4)).metrics


def test_before_training_and_within_averaged_there_is_one_evaluation(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    lawa = LawaCallback(mode="evaluate", every=1, window=2).attach(trainer)
    assert "eval_lawa_loss" not in trainer.evaluate()
    trainer.train()
    both = trainer.evaluate()
    assert [name for name in both if "lawa" in name] == ["eval_lawa_loss"]
    with lawa.averager.averaged():
        one = trainer.evaluate()
    assert one["eval_loss"] == both["eval_lawa_loss"]
    assert "eval_lawa_loss" not in one


def masked(rows: list[Any]) -> dict[str, Any]:
    """Labels of which half are left out, at random."""
    made = default_data_collator(rows)
    made["labels"] = made["labels"].masked_fill(torch.rand(made["labels"].shape) < 0.5, -100)
    return made


def test_what_is_drawn_at_random_is_the_same_for_all_weights_and_for_training(tmp_path: Path) -> None:
    """The average of one snapshot is the model; and training draws on as if no average had been evaluated."""
    ends = []
    for averaged in (True, False):
        settings = {"eval_strategy": "steps", "eval_steps": 1, "data_collator": masked}
        trainer = trainer_of(tmp_path, lm=model(attention_dropout=0.5), **settings)
        if averaged:
            LawaCallback(mode="evaluate", every=1, window=1).attach(trainer)
        trainer.train()
        ends.append(weights(trainer.model))
        if averaged:
            records = [record for record in trainer.state.log_history if "eval_loss" in record]
            assert len(records) == 6
            assert all(record["eval_loss"] == record["eval_lawa_loss"] for record in records)
    assert same(*ends)


# ---- the best model

BEST: dict[str, Any] = {
    "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1,
    "metric_for_best_model": "eval_lawa_loss", "load_best_model_at_end": True,
}  # fmt: skip


def test_the_best_model_is_the_average_with_the_best_metric(tmp_path: Path) -> None:
    notes = Notes()
    trainer = trainer_of(tmp_path, notes, **BEST, save_total_limit=2)
    LawaCallback(mode="evaluate", every=1, window=2).attach(trainer)
    trainer.train()
    losses = {one["step"]: one["eval_lawa_loss"] for one in trainer.state.log_history if "eval_lawa_loss" in one}
    assert sorted(losses) == [2, 3, 4, 5, 6]
    best = min(losses, key=lambda step: losses[step])
    assert best < 6, "or the last would do"
    average = mean([notes.ended[best - 1], notes.ended[best]])
    assert same(weights(trainer.model), average)
    assert trainer.evaluate()["eval_loss"] == trainer.state.best_metric == losses[best]
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
    assert checkpoints(tmp_path) == [best, 6]
    assert same(read(tmp_path / f"checkpoint-{best}/averages/lawa"), average)


def test_which_average_a_metric_is_of() -> None:
    lawa = LawaCallback(mode="evaluate", averages={"eval": EMA(0.9), "a": EMA(0.5), "b_a": EMA(0.6)})
    for metric in (None, "loss", "eval_loss", "eval_ba_loss"):
        assert lawa.average_of(metric) is None
    for metric, name in {
        "eval_eval_loss": "eval",
        "a_loss": "a",
        "eval_b_a_loss": "b_a",
        "eval_data_a_f1": "a",
    }.items():
        assert lawa.average_of(metric) == name


def test_only_a_best_checkpoint_is_saved(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, **(BEST | {"save_strategy": "best"}))
    LawaCallback(mode="evaluate", every=2, window=2).attach(trainer)
    trainer.train()
    assert trainer.state.best_global_step >= 4
    assert max(checkpoints(tmp_path)) == trainer.state.best_global_step


def test_early_stopping_goes_by_the_average(tmp_path: Path) -> None:
    """It counts from the first evaluation that has the metric."""
    stopping = EarlyStoppingCallback(early_stopping_patience=1, early_stopping_threshold=100.0)
    trainer = trainer_of(tmp_path, stopping, **BEST)
    LawaCallback(mode="evaluate", every=1, window=3).attach(trainer)
    trainer.train()
    assert trainer.state.global_step == 4


def test_a_metric_that_is_nobodys_is_the_trainers_error(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, **(BEST | {"metric_for_best_model": "eval_lawa_accuracy"}))
    LawaCallback(mode="evaluate", every=1, window=2).attach(trainer)
    with pytest.raises(KeyError, match="eval_lawa_accuracy"):
        trainer.train()
    assert trainer.state.global_step == 2


def test_a_replacement_due_at_the_end_leaves_the_best_model_alone(tmp_path: Path) -> None:
    notes = Notes()
    trainer = trainer_of(tmp_path, notes, **(BEST | {"metric_for_best_model": "loss"}))
    lawa = LawaCallback(mode="replace", every=6, window=1, min_window=1).attach(trainer)
    trainer.train()
    assert lawa.averager.last_replacement == 6
    assert trainer.state.best_global_step < 6
    assert same(weights(trainer.model), notes.ended[trainer.state.best_global_step])


# ---- updates


def test_one_capture_for_all_micro_batches_of_an_update(tmp_path: Path) -> None:
    notes = Notes()
    trainer = trainer_of(tmp_path, notes, gradient_accumulation_steps=3, max_steps=4)
    lawa = LawaCallback(mode="evaluate", every=1, window=2).attach(trainer)
    trainer.train()
    assert lawa.averager.steps() == [3, 4]
    with lawa.averager.averaged() as averaged:
        assert same(weights(averaged), mean([notes.ended[3], notes.ended[4]]))


def test_a_step_that_the_loss_scaler_skipped_is_marked(tmp_path: Path) -> None:
    class Overflow(TrainerCallback):
        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            kwargs["optimizer"]._is_overflow = state.global_step + 1 == 3

    trainer = trainer_of(tmp_path, Overflow())
    lawa = LawaCallback(mode="evaluate", every=1, window=6).attach(trainer)
    trainer.train()
    assert lawa.averager.steps() == [1, 2, 3, 4, 5, 6]
    assert lawa.averager.skipped() == [3]


@pytest.mark.parametrize("placement", ["device", "host"])
def test_moments_and_snapshots_wherever_they_lie(placement: str, tmp_path: Path) -> None:
    """Both need the optimizer itself, which accelerate has wrapped."""
    notes = Notes()
    trainer = trainer_of(tmp_path, notes)
    lawa = LawaCallback(mode="replace", every=3, window=2, placement=placement, moments="reset").attach(trainer)
    trainer.train()
    assert lawa.averager.last_replacement == 6
    assert same(weights(trainer.model), mean([notes.ended[3], notes.ended[6]]))
    assert all(float(one["step"]) == 0 for one in trainer.optimizer.state.values())


def test_a_copied_trainer_has_its_own_callback(tmp_path: Path) -> None:
    """As a search over hyperparameters makes one."""
    trainer = trainer_of(tmp_path)
    lawa = LawaCallback(mode="evaluate", every=1, window=2).attach(trainer)
    copied = copy.deepcopy(trainer)
    copied.train()
    assert copied.lawa.averager.step == 6
    with pytest.raises(LawaError, match=r"no averager before trainer\.train\(\) begins"):
        _ = lawa.averager


def test_other_callbacks_see_the_weights_after_a_replacement(tmp_path: Path) -> None:
    notes = Notes()
    trainer = trainer_of(tmp_path, notes)
    LawaCallback(mode="replace", every=2, window=2).attach(trainer)
    trainer.train()
    for t in (2, 3):
        assert same(notes.begun[t], notes.ended[t - 1]), "the window of two is not full before update 4"
    assert same(notes.begun[5], mean([notes.ended[2], notes.ended[4]]))
    assert same(weights(trainer.model), mean([notes.ended[4], notes.ended[6]])), "the one due at the last update"


def test_training_again_begins_anew(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    lawa = LawaCallback(mode="evaluate", every=2, window=2).attach(trainer)
    trainer.train()
    first = lawa.averager
    trainer.args.max_steps = 4
    trainer.train()
    assert lawa.averager is not first
    assert lawa.averager.steps() == [2, 4]


# ---- checkpoints


@pytest.mark.parametrize("mode", ["evaluate", "replace"])
def test_resumed_from_the_only_checkpoint_it_ends_with_the_same_bits(mode: str, tmp_path: Path) -> None:
    """save_total_limit=1 deletes checkpoints of updates that the window still holds."""
    settings = {"mode": mode, "every": 1, "window": 3, "averages": None}
    straight = trainer_of(tmp_path / "straight")
    whole = LawaCallback(**settings).attach(straight)
    straight.train()

    def stop(**_: Any) -> None:
        raise KeyboardInterrupt

    saving = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}
    stopped = trainer_of(tmp_path / "run", At(5, stop), **saving)
    LawaCallback(**settings).attach(stopped)
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    assert checkpoints(tmp_path / "run") == [4]

    resumed = trainer_of(tmp_path / "run", **saving)
    lawa = LawaCallback(**settings).attach(resumed)
    resumed.train(resume_from_checkpoint=True)
    assert checkpoints(tmp_path / "run") == [6]
    assert same(weights(resumed.model), weights(straight.model))
    assert lawa.averager.steps() == whole.averager.steps() == [4, 5, 6]
    with lawa.averager.averaged(), whole.averager.averaged():
        assert same(weights(resumed.model), weights(straight.model))


@pytest.mark.parametrize(("saved", "having"), [("last", [6]), ("all", [4, 6]), ("none", [])])
def test_averages_in_checkpoints_are_model_directories(saved: str, having: list[int], tmp_path: Path) -> None:
    notes = Notes()
    trainer = trainer_of(
        tmp_path, notes, save_strategy="steps", save_steps=2, save_total_limit=2, processing_class=tokenizer()
    )  # fmt: skip
    LawaCallback(mode="evaluate", every=1, window=3, save_averages=saved).attach(trainer)
    trainer.train()
    assert checkpoints(tmp_path) == [4, 6]
    found = [t for t in (4, 6) if (tmp_path / f"checkpoint-{t}/averages").exists()]
    assert found == having
    for t in having:
        directory = tmp_path / f"checkpoint-{t}/averages/lawa"
        assert same(read(directory), mean([notes.ended[one] for one in (t - 2, t - 1, t)]))
        assert AutoTokenizer.from_pretrained(directory)("w3 w1").input_ids == [3, 1]
        made = json.loads((directory / "provenance.json").read_text())
        assert (made["average"], made["update"], made["snapshots"]) == ("lawa", t, [t - 2, t - 1, t])
        assert same(read(tmp_path / f"checkpoint-{t}"), notes.ended[t])


def test_thinning_leaves_the_times_that_save_total_limit_goes_by(tmp_path: Path) -> None:
    class Old(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            os.utime(tmp_path / f"checkpoint-{state.global_step}", (state.global_step * 10,) * 2)

    trainer = trainer_of(tmp_path, Old(), save_strategy="steps", save_steps=2)
    LawaCallback(mode="evaluate", every=1, window=1).attach(trainer)
    trainer.train()
    assert [(tmp_path / f"checkpoint-{t}").stat().st_mtime for t in (2, 4, 6)] == [20, 40, 60]
    assert [(tmp_path / f"checkpoint-{t}/averages").exists() for t in (2, 4, 6)] == [False, False, True]


def test_models_alone_are_saved_without_the_state(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, save_strategy="steps", save_steps=6, save_only_model=True)
    LawaCallback(mode="evaluate", every=1, window=1).attach(trainer)
    trainer.train()
    assert not (tmp_path / "checkpoint-6/lawa").exists()
    assert (tmp_path / "checkpoint-6/averages/lawa/model.safetensors").is_file()


def test_a_checkpoint_without_the_state_says_so_and_a_window_starts_anew(tmp_path: Path) -> None:
    trainer_of(tmp_path, save_strategy="steps", save_steps=3).train()
    resumed = trainer_of(tmp_path)
    lawa = LawaCallback(mode="evaluate", every=1, window=5).attach(resumed)
    with (
        pytest.warns(
            UserWarning, match=r"checkpoint-3 has no state of the averager \(lawa/\): its averages start anew"
        ),
        pytest.warns(UserWarning, match="needs 5 captures and gets 3 until the last update, 6"),
    ):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert lawa.averager.steps() == [4, 5, 6]


def test_a_damaged_state_is_an_error(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, save_strategy="steps", save_steps=3)
    LawaCallback(mode="evaluate", every=1, window=2).attach(trainer)
    trainer.train()
    (tmp_path / "checkpoint-3/lawa/averager.json").write_text("{}")
    resumed = trainer_of(tmp_path)
    LawaCallback(mode="evaluate", every=1, window=2).attach(resumed)
    with pytest.raises(LawaError, match=r"averager\.json has 2 bytes"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_a_checkpoint_made_at_a_signal_has_the_state(tmp_path: Path) -> None:
    """It is not made by an event: on_save never comes."""

    def signalled(**_: Any) -> None:
        next(one for one in trainer.callback_handler.callbacks if hasattr(one, "jit_manager")).jit_manager\
            .is_checkpoint_requested = True  # fmt: skip

    trainer = trainer_of(tmp_path, At(4, signalled), enable_jit_checkpoint=True)
    LawaCallback(mode="replace", every=2, window=2).attach(trainer)
    trainer.train()
    assert (checkpoints(tmp_path), trainer.state.global_step) == ([4], 5)
    assert (tmp_path / "checkpoint-4/lawa/manifest.json").is_file()


def test_an_average_that_is_not_finite_is_not_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def spoil(**kwargs: Any) -> None:
        kwargs["model"].model.norm.weight.data[0] = float("nan")

    settings = {"save_strategy": "steps", "save_steps": 3}
    for strict in (False, True):
        trainer = trainer_of(tmp_path / str(strict), **settings)
        lawa = LawaCallback(mode="evaluate", every=3, window=1, strict=strict).attach(trainer)
        trainer.callback_handler.callbacks.insert(0, At(3, spoil))
        if strict:
            with pytest.raises(NonFiniteAverage, match="update 3: the average 'lawa' is not finite"):
                trainer.train()
        else:
            trainer.train()
            assert "update 3: the average 'lawa' is not finite" in caplog.text
            assert lawa.averager.step == 6
            with pytest.raises(NonFiniteAverage, match="update 6: the average 'lawa' is not finite"):
                lawa.save_average(tmp_path / "never")
            assert not (tmp_path / "never").exists()
        assert not (tmp_path / str(strict) / "checkpoint-3/averages/lawa").exists()


def test_an_average_is_saved_wherever_it_is_wanted_and_again(tmp_path: Path) -> None:
    notes = Notes()
    trainer = trainer_of(tmp_path, notes)
    lawa = LawaCallback(mode="evaluate", every=1, window=2).attach(trainer)
    trainer.train()
    for _ in range(2):
        assert lawa.save_average(tmp_path / "average") == tmp_path / "average"
    assert same(read(tmp_path / "average"), mean([notes.ended[5], notes.ended[6]]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["average"]


def test_an_older_average_stays_until_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = Notes()
    trainer = trainer_of(tmp_path, notes)
    lawa = LawaCallback(mode="evaluate", every=1, window=2).attach(trainer)
    trainer.train()
    lawa.save_average(tmp_path / "average")

    def full(where: str | Path, *_: Any, **__: Any) -> None:
        (Path(where) / "half").write_text("a")
        raise OSError("no space left")

    for place, method in ((trainer, "save_model"), (callback, "complete")):
        monkeypatch.setattr(place, method, full)
        with pytest.raises(OSError, match="no space left"):
            lawa.save_average(tmp_path / "average")
        monkeypatch.undo()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["average"]
        verify(tmp_path / "average")
        assert same(read(tmp_path / "average"), mean([notes.ended[5], notes.ended[6]]))
        assert same(weights(trainer.model), notes.ended[6])


def test_what_is_no_average_is_not_written_over(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    lawa = LawaCallback(mode="evaluate", every=1, window=2).attach(trainer)
    trainer.train()
    (tmp_path / "mine").mkdir()
    with pytest.raises(LawaError, match="mine is there, and no average of LAWA's; remove it or choose another place"):
        lawa.save_average(tmp_path / "mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]


def test_what_a_window_that_is_not_full_holds_is_averaged(tmp_path: Path) -> None:
    notes = Notes()
    trainer = trainer_of(tmp_path, notes, max_steps=2)
    lawa = LawaCallback(mode="evaluate", every=1, window=5).attach(trainer)
    with pytest.warns(UserWarning, match="needs 5 captures and gets 2 until the last update, 2"):
        trainer.train()
    lawa.save_average(tmp_path / "average")
    assert same(read(tmp_path / "average"), mean([notes.ended[1], notes.ended[2]]))
    made = json.loads((tmp_path / "average/provenance.json").read_text())
    assert (made["snapshots"], made["dtype"], made["rounded"]) == ([1, 2], ["float32"], False)


# ---- the hub


def test_an_average_is_pushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub(monkeypatch) as commits:
        notes = Notes()
        trainer = trainer_of(
            tmp_path, notes, push_to_hub=True, hub_model_id="me/tiny", hub_token="hf_none",
            hub_strategy="all_checkpoints", save_strategy="steps", save_steps=6, hub_always_push=True,
        )  # fmt: skip
        lawa = LawaCallback(mode="evaluate", every=1, window=2).attach(trainer)
        trainer.train()
        assert len(commits) == 2, "the output's, and the checkpoint's"
        while_training = {name for commit in commits for name in commit}
        assert "checkpoint-6/averages/lawa/model.safetensors" in while_training
        assert "checkpoint-6/lawa/manifest.json" in while_training
        with lawa.averager.averaged():
            trainer.push_to_hub()
    pushed = tmp_path / "pushed"
    pushed.mkdir()
    for name in ("config.json", "model.safetensors"):
        (pushed / name).write_bytes(commits[-1][name])
    assert same(read(pushed), mean([notes.ended[5], notes.ended[6]]))
    assert same(weights(trainer.model), notes.ended[6])


# ---- errors


def test_attaching_twice(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    lawa = LawaCallback(mode="evaluate", every=1, window=2).attach(trainer)
    for one, to in ((lawa, trainer), (lawa, trainer_of(tmp_path)), (LawaCallback(mode="evaluate"), trainer)):
        with pytest.raises(LawaError, match="belong together once"):
            one.attach(to)


def test_given_as_a_callback_it_asks_to_be_attached(tmp_path: Path) -> None:
    lawa = LawaCallback(mode="evaluate", every=1, window=2)
    trainer = trainer_of(tmp_path, lawa)
    with pytest.raises(LawaError, match=r"call LawaCallback\(…\)\.attach\(trainer\)"):
        trainer.train()
    lawa.attach(trainer)
    assert trainer.callback_handler.callbacks.count(lawa) == 1
    trainer.train()
    assert lawa.averager.steps() == [5, 6]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mode": "evaluated"}, "mode='evaluated' must be"),
        ({"mode": "evaluate", "window": 0}, "window=0 must be at least 1"),
        ({"mode": "evaluate", "placement": "disc"}, "placement='disc' must be one of"),
        ({"mode": "replace", "averages": {"a": EMA(0.9), "b": EMA(0.5)}}, "replace_with"),
        ({"mode": "evaluate", "save_averages": "best"}, "save_averages='best' must be 'last', 'all' or 'none'"),
    ],
)
def test_settings_are_checked_at_once(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(LawaError, match=said):
        LawaCallback(**settings)


def test_mode_has_no_default() -> None:
    with pytest.raises(TypeError, match="mode"):
        LawaCallback(every=1, window=2)  # type: ignore[call-arg]


def test_a_best_average_must_be_kept(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, **BEST)
    with pytest.raises(LawaError, match="nothing to load at the end; choose 'last'"):
        LawaCallback(mode="evaluate", every=1, window=2, save_averages="none").attach(trainer)


@pytest.mark.parametrize(
    ("version", "state_dict_type", "said"),
    [(1, "FULL_STATE_DICT", "set fsdp_config={'version': 2}"), (2, "SHARDED_STATE_DICT", "'FULL_STATE_DICT'}")],
)
def test_what_accelerate_shards_in_a_way_that_does_not_serve(
    version: int, state_dict_type: str, said: str, tmp_path: Path
) -> None:
    trainer = trainer_of(tmp_path)
    plugin = type("Plugin", (), {"fsdp_version": version, "state_dict_type": f"StateDictType.{state_dict_type}"})()
    trainer.accelerator = type("Accelerator", (), {"state": type("State", (), {"fsdp_plugin": plugin})()})()  # type: ignore[assignment]
    with pytest.raises(LawaError) as refused:
        LawaCallback(mode="evaluate", every=1, window=2).attach(trainer)
    assert said in str(refused.value)


def test_without_transformers_it_says_what_installs_it() -> None:
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "try: import lawa.integrations.transformers\n"
        "except ValueError as missing: print(missing)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'latest-weight-averaging[transformers]'" in done.stdout


@pytest.mark.slow
def test_two_ranks_of_ddp(tmp_path: Path) -> None:
    """The script has the assertions."""
    said = launch(Path(__file__).with_name("hf_ranks.py"), 2, str(tmp_path))
    assert all(f"rank {rank} is done" in said for rank in (0, 1))


@pytest.mark.slow
def test_the_example(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples/hf_trainer.py"), str(tmp_path)],
        capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    own, average = (float(line.rsplit(" ", 1)[1]) for line in done.stdout.strip().splitlines()[-2:])
    assert average < own
