"""LawaCallback in real Lightning trainers; the whole contract runs over it in tests/contracts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torchmetrics
from lightning.pytorch.callbacks import (
    Checkpoint,
    EarlyStopping,
    LearningRateFinder,
    ModelCheckpoint,
)
from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from launching import launch
from lawa import EMA, LawaError, NonFiniteAverage, Window
from lawa.integrations.lightning import LawaCallback

ROOT = Path(__file__).parents[2]
NEVER = pytest.warns(UserWarning, match="it will never be ready")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*number of training batches .* is smaller than the logging interval"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
    pytest.mark.filterwarnings(r"ignore:Be aware that when using(?!.*LawaCallback)"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
]


class Small(pl.LightningModule):
    """A linear model with dropout, two metrics that are logged in validation and what each batch of training saw."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.save_hyperparameters()
        torch.manual_seed(0)
        self.linear = nn.Linear(width, 1)
        self.metric = torchmetrics.MeanSquaredError()
        self.seen: list[Tensor] = []

    def loss(self, batch: tuple[Tensor, Tensor], metric: Any = None) -> Tensor:
        x, y = batch
        guess = self.linear(nn.functional.dropout(x, 0.2, self.training))
        if metric is not None:
            metric(guess, y)
        return (guess - y).square().mean()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.seen.append(self.linear.weight.detach().clone())
        return self.loss(batch)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", self.loss(batch, self.metric))
        self.log_dict({"mse": self.metric}, on_step=False, on_epoch=True)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("test_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.1)


def data(n: int = 24, seed: int = 1) -> TensorDataset:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=draw)
    return TensorDataset(x, x.sum(1, keepdim=True) + 0.1 * torch.randn(n, 1, generator=draw))


HELD_OUT = DataLoader(data(10, seed=2), batch_size=5)


def train_loader(batch_size: int = 4) -> DataLoader:
    return DataLoader(data(), batch_size=batch_size, shuffle=True)


class Notes(Logger):
    """A logger that keeps everything."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[int | None, dict[str, float]]] = []

    name = version = "notes"  # type: ignore[assignment]

    @property
    @rank_zero_experiment
    def experiment(self) -> None: ...

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.lines.append((step, metrics))


def trainer_of(*callbacks: pl.Callback, **settings: Any) -> pl.Trainer:
    quiet: dict[str, Any] = {
        "accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False,
        "enable_model_summary": False, "num_sanity_val_steps": 0, "max_steps": 12, "val_check_interval": 2,
        "enable_checkpointing": any(isinstance(one, Checkpoint) for one in callbacks),
    }  # fmt: skip
    return pl.Trainer(callbacks=list(callbacks), **(quiet | settings))


def fit(*callbacks: pl.Callback, model: Small | None = None, path: Any = None, **settings: Any) -> tuple[Small, Any]:
    model, trainer = model or Small(), trainer_of(*callbacks, **settings)
    pl.seed_everything(5, verbose=False)
    trainer.fit(model, train_loader(), HELD_OUT, ckpt_path=path)
    return model, trainer


def held_out_loss(model: Small) -> float:
    x, y = (torch.cat(parts) for parts in zip(*HELD_OUT, strict=True))
    with torch.no_grad():
        return (model.linear(x) - y).square().mean().item()


class Look(pl.Callback):
    """After every validation: its metrics, and what the losses are by hand."""

    def __init__(self, lawa: LawaCallback) -> None:
        self.lawa, self.metrics, self.by_hand = lawa, [], []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Small)
        self.metrics.append({name: value.item() for name, value in trainer.callback_metrics.items()})
        self.by_hand.append({"val_loss": held_out_loss(pl_module)})
        for name in self.lawa.averager.averages:
            if self.lawa.averager.ready(name):
                with self.lawa.averager.averaged(name):
                    self.by_hand[-1][f"{name}/val_loss"] = held_out_loss(pl_module)


def test_each_average_is_validated_under_its_own_name_and_the_plain_weights_under_theirs() -> None:
    lawa = LawaCallback(mode="evaluate", averages={"lawa": Window(2, every=3), "ema": EMA(0.9)})
    look, notes = Look(lawa), Notes()
    fit(look, lawa, logger=notes)
    assert len(look.metrics) == 6
    for metrics, by_hand in zip(look.metrics, look.by_hand, strict=True):
        for name, loss in by_hand.items():
            assert metrics[name] == pytest.approx(loss, rel=1e-5)
            assert metrics[name.replace("val_loss", "mse")] == pytest.approx(loss, rel=1e-5), "metrics are not mixed"
    assert len({round(value, 6) for value in look.by_hand[-1].values()}) == 3, "the three differ"
    # Until an average is ready those who monitor it find the plain value, and the records nothing.
    assert look.metrics[0]["lawa/val_loss"] == look.metrics[0]["val_loss"] != look.metrics[0]["ema/val_loss"]
    logged: dict[Any, list[str]] = {}
    for step, line in notes.lines:
        logged.setdefault(step, []).extend(name for name in line if name.endswith("val_loss"))
    both = [["ema/val_loss", "val_loss"]] * 2, [["lawa/val_loss", "ema/val_loss", "val_loss"]] * 4
    assert list(logged.values()) == [*both[0], *both[1]]


@pytest.mark.parametrize("evaluate", [True, False])
def test_training_and_the_plain_metrics_are_those_of_a_run_without_it(evaluate: bool, tmp_path: Path) -> None:
    def run(*callbacks: pl.Callback) -> tuple[Small, Any, Notes]:
        notes = Notes()
        saved = ModelCheckpoint(tmp_path, save_last=True, monitor="val_loss")
        return *fit(saved, *callbacks, logger=notes), notes

    alone, its_trainer, its_notes = run()
    model, trainer, notes = run(LawaCallback(mode="evaluate", every=1, window=3, evaluate=evaluate))
    assert torch.equal(torch.stack(model.seen), torch.stack(alone.seen))
    plain = [(step, line) for step, line in notes.lines if not any("/" in name for name in line)]
    assert plain == its_notes.lines
    loops = [one.fit_loop.epoch_loop.val_loop for one in (trainer, its_trainer)]
    assert loops[0].state_dict() == loops[1].state_dict()
    assert "run" not in vars(loops[0]), "the loop is its class's again"
    assert model.training == alone.training


def test_other_callbacks_see_one_validation(tmp_path: Path) -> None:
    seen: list[str] = []

    class Counts(pl.Callback):
        def on_validation_start(self, *_: Any) -> None:
            seen.append("start")

        def on_validation_batch_end(self, *_: Any) -> None:
            seen.append("batch")

    fit(Counts(), LawaCallback(mode="evaluate", every=1, window=2), max_steps=4)
    assert seen == ["start", "batch", "batch"] * 2


@pytest.mark.parametrize("first", [True, False])
def test_checkpoints_and_early_stopping_may_monitor_an_average(first: bool, tmp_path: Path) -> None:
    lawa = LawaCallback(mode="evaluate", every=4, window=2)
    best = ModelCheckpoint(tmp_path, monitor="lawa/val_loss", save_top_k=-1, filename="{step}")
    stop = EarlyStopping("lawa/val_loss", patience=100)
    look = Look(lawa)
    order = [lawa, best, stop, look] if first else [best, stop, look, lawa]
    fit(*order)
    scores = {int(Path(path).stem.partition("=")[2]): score.item() for path, score in best.best_k_models.items()}
    values = {2 * (i + 1): metrics["lawa/val_loss"] for i, metrics in enumerate(look.metrics)}
    assert scores == values
    assert sorted(scores) == [2, 4, 6, 8, 10, 12]
    assert stop.best_score.item() == min(scores.values())


@pytest.mark.parametrize("weights_only", [True, False])
def test_a_checkpoint_has_the_live_weights_and_all_that_a_resume_needs(weights_only: bool, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "mode": "replace", "replace_with": "lawa",
        "averages": {"lawa": Window(3, every=2), "ema": EMA(0.5)},
    }  # fmt: skip
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    lawa = LawaCallback(**settings)
    model, _ = fit(keep, lawa)
    file = torch.load(tmp_path / "step=6.ckpt", weights_only=weights_only)
    held = torch.stack([one["linear.weight"] for _, one in sorted(file["lawa"]["snapshots"].items())])
    assert torch.equal(file["state_dict"]["linear.weight"], held[-1]), "the replacement at 6 is still pending"
    assert not torch.equal(model.seen[6], held[-1])
    assert torch.equal(model.seen[6], ((held[0] + held[1]) + held[2]) * torch.tensor(1 / 3))

    again = LawaCallback(**settings)
    trainer = trainer_of(again)
    trainer.fit(
        Small(), train_loader(), HELD_OUT, ckpt_path=str(tmp_path / "step=12.ckpt"), weights_only=weights_only
    )  # nothing is left to do
    assert again.averager.step == 12
    assert again.averager.replacement_pending, "no batch follows that it could be carried out before"
    for name in settings["averages"]:
        with lawa.averager.averaged(name) as left, again.averager.averaged(name) as right:
            assert all(torch.equal(a, b) for a, b in zip(left.parameters(), right.parameters(), strict=True))


def test_a_checkpoint_without_a_state_starts_the_averages_anew_and_says_so(tmp_path: Path) -> None:
    fit(ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=6), max_steps=6)
    lawa = LawaCallback(mode="evaluate", every=2, window=5)
    with pytest.warns(UserWarning, match="no state of LawaCallback; its averages start anew"), NEVER:
        fit(lawa, path=str(tmp_path / "last.ckpt"))
    assert lawa.averager.steps() == [8, 10, 12], "t is the trainer's"


@pytest.mark.slow
def test_a_sharded_checkpoint_without_a_state_starts_the_averages_anew(tmp_path: Path) -> None:
    """It is loaded when the averager is there already. The script has the assertions."""
    said = launch(Path(__file__).with_name("lightning_ranks.py"), 2, str(tmp_path))
    assert all(f"rank {rank} is done" in said for rank in (0, 1))


def test_lightning_warns_where_a_state_is_left_behind(tmp_path: Path) -> None:
    fit(ModelCheckpoint(tmp_path, save_last=True), LawaCallback(mode="evaluate", every=1, window=2), max_steps=4)
    with pytest.warns(UserWarning, match="LawaCallback"):
        fit(path=str(tmp_path / "last.ckpt"), max_steps=5)


def test_captures_follow_the_optimizers_steps_and_not_the_batches() -> None:
    class Captured(LawaCallback):
        batches: list[int]

        def on_train_batch_end(self, trainer: pl.Trainer, *rest: Any) -> None:  # type: ignore[override]
            before = self.averager.step
            super().on_train_batch_end(trainer, *rest)
            if self.averager.step > before:
                assert self.averager.step == trainer.global_step == before + 1
                self.batches.append(trainer.fit_loop.total_batch_idx + 1)

    lawa = Captured(mode="evaluate", every=1, window=5)
    lawa.batches = []
    with NEVER:
        fit(lawa, accumulate_grad_batches=4, max_steps=-1, max_epochs=2, gradient_clip_val=0.1)
    assert lawa.batches == [4, 6, 10, 12], "6 batches an epoch, whose last one steps"
    assert lawa.averager.steps() == [1, 2, 3, 4]


class Manual(Small):
    """Two optimizers; the second steps with every second batch, and with every third nothing does."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:  # type: ignore[override]
        self.seen.append(self.linear.weight.detach().clone())
        optimizers = self.optimizers()
        assert isinstance(optimizers, list)
        self.manual_backward(self.loss(batch))
        if batch_idx % 3 == 2:
            return
        optimizers[0].step()
        if batch_idx % 2:
            optimizers[1].step()
        for one in optimizers:
            one.zero_grad()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD([self.linear.weight], lr=0.1), torch.optim.SGD([self.linear.bias], lr=0.1)]


def test_manual_optimization_counts_batches_that_stepped() -> None:
    lawa = LawaCallback(mode="evaluate", every=1, window=9)
    with NEVER:
        _, trainer = fit(lawa, model=Manual(), max_steps=-1, max_epochs=1)
    assert lawa.averager.steps() == [1, 2, 3, 4], "of 6 batches two did not step"
    assert trainer.global_step == 6


def test_validation_and_test_from_a_checkpoint_in_a_fresh_process(tmp_path: Path) -> None:
    lawa = LawaCallback(mode="replace", moments="reset", every=2, window=2)
    look = Look(lawa)
    fit(lawa, look, ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=6), max_steps=6)
    for stage, metric in (("validate", "val_loss"), ("test", "test_loss")):
        fresh, model = LawaCallback(mode="replace", moments="reset", every=2, window=2), Small()
        trainer = trainer_of(fresh)
        (said,) = getattr(trainer, stage)(model, HELD_OUT, ckpt_path=str(tmp_path / "last.ckpt"), verbose=False)
        assert said[metric] == pytest.approx(look.by_hand[-1]["val_loss"], rel=1e-5)
        assert said[f"lawa/{metric}"] == pytest.approx(look.by_hand[-1]["lawa/val_loss"], rel=1e-5)
        assert held_out_loss(model) == pytest.approx(said[metric], rel=1e-5), "the weights are back"
        (again,) = getattr(trainer, stage)(model, HELD_OUT, verbose=False)
        assert again == said


@pytest.mark.parametrize("evaluate", [True, False])
def test_a_fit_after_a_validation_from_a_checkpoint_begins_anew(evaluate: bool, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"mode": "evaluate", "every": 1, "window": 2}
    fit(LawaCallback(**settings), ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=6), max_steps=6)
    lawa, model = LawaCallback(evaluate=evaluate, **settings), Small()
    trainer = trainer_of(lawa, max_steps=3)
    trainer.validate(model, HELD_OUT, ckpt_path=str(tmp_path / "last.ckpt"), verbose=False)
    trainer.fit(model, train_loader(), HELD_OUT)
    assert lawa.averager.steps() == [2, 3]


def test_a_checkpoint_without_a_state_is_evaluated_without_the_averages_held_before(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"mode": "evaluate", "every": 1, "window": 2}
    fit(ModelCheckpoint(tmp_path / "plain", save_last=True, every_n_train_steps=6), max_steps=6)
    first = LawaCallback(**settings)
    fit(first, ModelCheckpoint(tmp_path / "lawa", save_last=True, every_n_train_steps=5), max_steps=5)
    lawa = LawaCallback(**settings)
    model, trainer = fit(lawa, max_steps=8)
    (said,) = trainer.validate(model, HELD_OUT, ckpt_path=str(tmp_path / "lawa/last.ckpt"), verbose=False)
    assert lawa.averager.steps() == first.averager.steps() == [4, 5]
    with first.averager.averaged() as module:
        assert said["lawa/val_loss"] == pytest.approx(held_out_loss(module), rel=1e-5)  # type: ignore[arg-type]
    (said,) = trainer.validate(model, HELD_OUT, ckpt_path=str(tmp_path / "plain/last.ckpt"), verbose=False)
    assert sorted(said) == ["mse", "val_loss"]


def test_another_module_is_evaluated_without_the_averages_of_this_one() -> None:
    lawa = LawaCallback(mode="evaluate", every=1, window=2)
    _, trainer = fit(lawa, max_steps=4)
    (said,) = trainer.validate(Small(), HELD_OUT, verbose=False)
    assert sorted(said) == ["mse", "val_loss"]


def test_several_loaders_and_their_results() -> None:
    lawa = LawaCallback(mode="evaluate", every=1, window=2)
    model, trainer = fit(lawa, max_steps=4)
    loaders = [HELD_OUT, DataLoader(data(5, seed=3), batch_size=5)]
    first, second = trainer.validate(model, loaders, verbose=False)
    assert {"val_loss/dataloader_idx_0", "lawa/val_loss/dataloader_idx_0"} <= first.keys()
    assert {"val_loss/dataloader_idx_1", "lawa/val_loss/dataloader_idx_1"} <= second.keys()
    assert not any(name.endswith("idx_1") for name in first)


def test_an_average_is_written_as_a_checkpoint_of_its_own(tmp_path: Path) -> None:
    lawa = LawaCallback(mode="evaluate", every=1, window=3)
    model, trainer = fit(lawa)
    before = model.linear.weight.detach().clone()
    assert lawa.save_average(trainer, str(tmp_path / "average.ckpt")) == tmp_path / "average.ckpt"
    assert torch.equal(model.linear.weight, before)
    assert not {"optimizer_states", "callbacks", "lawa"} & torch.load(tmp_path / "average.ckpt").keys()
    loaded = Small.load_from_checkpoint(tmp_path / "average.ckpt", weights_only=True)
    with lawa.averager.averaged():
        assert torch.equal(loaded.linear.weight, model.linear.weight)
        assert not torch.equal(model.linear.weight, before)
    with torch.no_grad():
        model.linear.weight.fill_(float("nan"))
    lawa.averager.capture(13)
    with pytest.raises(NonFiniteAverage, match=r"'lawa' is not finite; .*never.ckpt was not written"):
        lawa.save_average(trainer, tmp_path / "never.ckpt")
    assert not (tmp_path / "never.ckpt").exists()


def test_a_failing_validation_of_an_average_leaves_the_live_weights_and_a_good_checkpoint(tmp_path: Path) -> None:
    class Fails(Small):
        def validation_step(self, *args: Any) -> None:
            if len(self.seen) == 6 and not torch.equal(self.linear.weight, self.after):
                raise RuntimeError("of the average")

        def on_train_batch_end(self, *_: Any) -> None:
            self.after = self.linear.weight.detach().clone()

    lawa, model = LawaCallback(mode="evaluate", every=1, window=3), Fails()
    with pytest.raises(RuntimeError, match="of the average"):
        fit(ModelCheckpoint(tmp_path, filename="{step}", save_on_exception=True), lawa, model=model)
    assert torch.equal(model.linear.weight, model.after)
    file = torch.load(tmp_path / "step=6.ckpt", weights_only=True)
    assert torch.equal(file["state_dict"]["linear.weight"], model.after)
    assert lawa.averager.steps() == [4, 5, 6]
    assert "log" not in vars(model)


def test_a_module_that_saves_while_it_validates_saves_its_own_weights(tmp_path: Path) -> None:
    class Saves(Small):
        calls = 0

        def on_validation_epoch_end(self) -> None:
            self.calls += 1
            self.trainer.save_checkpoint(tmp_path / f"{len(self.seen)}-{self.calls}.ckpt")

    model, trainer = fit(LawaCallback(mode="evaluate", every=1, window=3), model=Saves())
    assert model.calls == 11, "at 2 the average is not ready"
    files = {int(path.stem.partition("-")[0]): torch.load(path, weights_only=True) for path in tmp_path.iterdir()}
    assert len(list(tmp_path.iterdir())) == len(files) == 6, "the runs with an average's weights write none"
    assert all(torch.equal(files[t]["state_dict"]["linear.weight"], model.seen[t]) for t in range(2, 12, 2))
    assert all("lawa" in file for file in files.values())
    assert "save_checkpoint" not in vars(trainer)


def test_sanity_checking_is_plain() -> None:
    class Checked(Small):
        checks = 0

        def validation_step(self, *args: Any) -> None:
            self.checks += self.trainer.sanity_checking

    lawa, model = LawaCallback(mode="evaluate", every=1, window=2), Checked()
    _, trainer = fit(lawa, model=model, num_sanity_val_steps=1, max_steps=4)
    trainer.fit_loop.epoch_loop.max_steps = 5
    trainer.fit(model, train_loader(), HELD_OUT)
    assert lawa.averager.step == 5
    assert model.checks == 2, "one for each fit, also where the average is ready"


def test_fit_called_again_goes_on() -> None:
    lawa = LawaCallback(mode="evaluate", every=1, window=4)
    with NEVER:
        model, trainer = fit(lawa, max_steps=3)
    kept = {step: one["linear.weight"].clone() for step, one in lawa.averager.state_dict()["snapshots"].items()}
    trainer.fit_loop.epoch_loop.max_steps = 5
    trainer.fit(model, train_loader(), HELD_OUT)
    assert lawa.averager.steps() == [2, 3, 4, 5]
    state = lawa.averager.state_dict()["snapshots"]
    assert torch.equal(state["00000002"]["linear.weight"], kept["00000002"])
    trainer_of(lawa).fit(Small(), train_loader(), HELD_OUT)
    assert lawa.averager.steps() == [9, 10, 11, 12], "another model and trainer begin anew"


def test_what_a_learning_rate_finder_tries_is_not_captured(tmp_path: Path) -> None:
    lawa = LawaCallback(mode="evaluate", every=1, window=4)

    class Tuned(Small):
        lr = 0.1

    trainer = trainer_of(LearningRateFinder(num_training_steps=5, update_attr=False), lawa, default_root_dir=tmp_path)
    trainer.fit(Tuned(), train_loader(), HELD_OUT)
    assert lawa.averager.steps() == [9, 10, 11, 12]
    assert lawa._loaded is None, "the state that it restored is held no longer"
    (said,) = trainer.validate(trainer.lightning_module, HELD_OUT, verbose=False)
    assert said["lawa/val_loss"] != said["val_loss"]


def test_the_capture_of_an_update_that_the_loss_scaler_skipped_is_marked() -> None:
    class Overflows(Small):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            return loss * float("inf") if batch_idx == 3 else loss

    lawa = LawaCallback(mode="evaluate", every=2, window=3)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    model, trainer = fit(lawa, model=Overflows(), max_steps=6, plugins=[plugin])
    assert trainer.global_step == 6
    assert torch.equal(model.seen[4], model.seen[3]), "the update was skipped"
    assert lawa.averager.steps() == [2, 4, 6]
    assert lawa.averager.skipped() == [4]


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-mixed", torch.float32), ("bf16-true", torch.bfloat16)])
def test_what_is_captured_has_the_dtype_that_the_precision_keeps(precision: Any, dtype: torch.dtype) -> None:
    lawa = LawaCallback(mode="replace", every=2, window=2)
    model, _ = fit(lawa, precision=precision)
    snapshots = lawa.averager.state_dict()["snapshots"].values()
    assert {tensor.dtype for one in snapshots for tensor in one.values()} == {dtype}
    assert model.linear.weight.dtype == dtype


@pytest.mark.slow
def test_a_compiled_module_is_averaged_under_its_own_names() -> None:
    lawa, model = LawaCallback(mode="replace", every=1, window=2), Small()
    look = Look(lawa)
    trainer_of(lawa, look, max_steps=4).fit(torch.compile(model, backend="eager"), train_loader(), HELD_OUT)  # type: ignore[arg-type]
    snapshot = lawa.averager.state_dict()["snapshots"]["00000004"]
    assert sorted(snapshot) == ["linear.bias", "linear.weight"]
    assert look.metrics[-1]["lawa/val_loss"] == pytest.approx(look.by_hand[-1]["lawa/val_loss"], rel=1e-5)


def test_two_callbacks_of_it_are_one_too_many() -> None:
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `LawaCallback`"):
        trainer_of(*(LawaCallback(mode="evaluate", every=1, window=2) for _ in range(2)))


def test_the_averager_before_fit_and_settings_that_contradict_each_other() -> None:
    with pytest.raises(LawaError, match=r"trainer\.fit makes it"):
        _ = LawaCallback(mode="evaluate", every=1, window=2).averager
    with pytest.raises(LawaError, match="mode='average' must be"):
        LawaCallback(mode="average", every=1, window=2)
    with pytest.raises(LawaError, match="window=0 must be at least 1"):
        LawaCallback(mode="evaluate", window=0)


@pytest.mark.parametrize(
    ("settings", "last"),
    [({"max_steps": 9}, 9), ({"max_steps": -1, "max_epochs": 1}, 6), ({"max_steps": 9, "max_epochs": 1}, 6)],
)
def test_an_average_that_is_never_ready_is_said_before_training(settings: dict[str, Any], last: int) -> None:
    lawa = LawaCallback(mode="evaluate", averages={"lawa": Window(10, every=1), "ema": EMA(0.9)})
    said = f"'lawa' .* needs 10 captures and gets {last} until the last update, {last}: it will never be ready"
    with pytest.warns(UserWarning, match=said) as warned:
        fit(lawa, **settings)
    assert sum("never be ready" in str(one.message) for one in warned) == 1, "the EMA is ready"
    assert not lawa.averager.ready("lawa")


def test_where_the_last_update_is_not_known_nothing_is_said() -> None:
    class Endless(IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            return iter(data())

    lawa = LawaCallback(mode="evaluate", every=1, window=9)
    fit(lawa, max_steps=-1, max_epochs=-1, max_time={"seconds": 0})
    trainer_of(lawa, max_steps=-1, max_epochs=1).fit(Small(), DataLoader(Endless(), batch_size=4), HELD_OUT)
    assert lawa.averager.step == 6


def test_without_lightning_the_way_to_install_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "lawa.integrations.lightning")
    monkeypatch.setitem(sys.modules, "lightning", None)
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    with pytest.raises(LawaError, match=r"pip install 'latest-weight-averaging\[lightning\]'"):
        import lawa.integrations.lightning  # noqa: F401


@pytest.mark.slow
def test_the_example_shows_the_average_at_work(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples/lightning_trainer.py")],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    losses = {line.split()[0]: float(line.split()[1]) for line in done.stdout.splitlines() if line.count(" ")}
    assert losses["lawa/val_loss"] < losses["val_loss"]
    assert not list(tmp_path.iterdir()), "it leaves nothing behind"
