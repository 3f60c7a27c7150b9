"""LAWA in a Lightning trainer: one callback.

    L.Trainer(callbacks=[LawaCallback(mode="evaluate", every=1000, window=5)])

    batch that stepped → capture → validation (each average, then the plain weights) → checkpoints (θ_t, with a due
    replacement pending) → replacement → next batch

Validation and test run once more for each average, with its weights, and its metrics are logged beside the plain ones:
val_loss, lawa/val_loss. A checkpoint's state_dict is always that of the live weights; the averager's state lies
beside it. Lightning's own WeightAveraging puts the average into both.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from lawa.averaging.averager import WeightAverager
from lawa.averaging.foresight import check_settings, warn_what_is_never_ready
from lawa.checkpoints.averager_state import AveragerState
from lawa.errors import LawaError, NonFiniteAverage, require

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.utilities.rank_zero import rank_zero_warn
    from lightning.pytorch.utilities.seed import isolate_rng
except ModuleNotFoundError:
    require("lightning", extra="lightning")
    raise

KEY = "lawa"  # of the averager's state in a checkpoint: the key in its file, or the folder in its directory


class LawaCallback(Callback):
    """Latest weight averaging in `trainer.fit`.

    mode, settings  of WeightAverager: every, window, averages, replace_with, placement, …
    evaluate        validate and test each average that is ready, too; the metrics of average NAME are logged as
                    NAME/metric. Until it is ready, ModelCheckpoint and EarlyStopping that monitor NAME/metric find
                    the plain metric there, and loggers nothing

    An update is an optimizer step, t is trainer.global_step. With manual optimization global_step counts every
    optimizer's every step; there, t counts the training batches in which any optimizer stepped.

    The callback moves itself to the front of the trainer's callbacks, so all others see what it has done.

    Raises LawaError for settings that contradict each other.
    """

    def __init__(self, *, mode: str, evaluate: bool = True, **settings: Any) -> None:
        self.settings = {"mode": mode, **settings}
        self.evaluate = evaluate
        self._averager: WeightAverager | None = None
        self._beside: AveragerState | None = None  # its state in directories, where the strategy writes such
        self._module: LightningModule | None = None  # what the averager was made for
        self._loaded: dict[str, Any] | None = None  # a checkpoint's state, until there is an averager to take it over
        self._stepped = 0  # trainer.global_step at the last update
        self._scale: float | None = None  # the loss scaler's, before an update whose capture is due
        check_settings(self.settings)

    @property
    def averager(self) -> WeightAverager:
        """The averager, from the beginning of `trainer.fit` on (or of validation from a checkpoint that has its state).

        Its `averaged(name)` gives the module the average's weights for as long as a block lasts, as around
        `trainer.predict`.
        """
        if self._averager is None:
            raise LawaError("LawaCallback has no averager yet; trainer.fit makes it")
        return self._averager

    def save_average(self, trainer: Trainer, path: str | Path, name: str | None = None) -> Path:
        """Write average `name` as a Lightning checkpoint with weights only; its path.

        Module.load_from_checkpoint(path) reads it. Every rank calls. The average is that of what is held: of fewer
        snapshots where the window is not full yet. Raises LawaError where it holds nothing, and NonFiniteAverage for
        an inf or nan: nothing is written then.
        """
        with self.averager.averaged(name):
            own = name or next(iter(self.averager.averages))
            if not self.averager.is_finite(own):
                raise NonFiniteAverage(f"the average {own!r} is not finite; {path} was not written")
            trainer.save_checkpoint(path, weights_only=True)
        return Path(path)

    # ---- the trainer's hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._loaded = None
        trainer.callbacks = [self, *(one for one in trainer.callbacks if one is not self)]  # type: ignore[attr-defined]
        if self.evaluate:
            for loop in _evaluation_loops(trainer):
                loop.run = partial(self._run, trainer, loop)
        strategy = trainer.strategy
        if _saves_directories(strategy):
            strategy.save_checkpoint = partial(self._save_beside, strategy)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for loop in _evaluation_loops(trainer):
            vars(loop).pop("run", None)  # its class's again

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        goes_on = self._module is pl_module and self._stepped == trainer.global_step
        if goes_on and self._averager is not None and self._loaded is None:
            self._loaded = self._averager.state_dict()  # for an averager of the new optimizers
        self._make(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._take_over()  # what a learning rate finder has restored
        self._stepped = trainer.global_step
        if (last := _last_update(trainer)) is not None:
            warn_what_is_never_ready(self.averager, after=self._next(trainer, stepped=1) - 1, last=last)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.averager.replace_if_due()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None and self._scale is None:
            t = self._next(trainer, stepped=1)
            if any(average.cadence.due(t) for average in self.averager.averages.values()):
                self._scale = scaler.get_scale()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._stepped:
            return  # gradients accumulate
        skipped = self._scale is not None and trainer.precision_plugin.scaler.get_scale() < self._scale  # type: ignore[attr-defined]
        self.averager.capture(self._next(trainer), skipped=skipped)
        self._stepped, self._scale = trainer.global_step, None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.averager.replace_if_due()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.evaluate or trainer.sanity_checking or self._averager is None or self._module is not pl_module:
            return
        plain = trainer._logger_connector.metrics["callback"]
        for name in self._averager.averages:
            if not self._averager.ready(name):
                trainer.callback_metrics.update({f"{name}/{metric}": value for metric, value in plain.items()})

    # ---- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Tells Lightning, which warns when a checkpoint is loaded without its callbacks, that there is a state."""
        return {} if self._averager is None else {"step": self._averager.step}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._averager is not None:
            whole = not _saves_directories(trainer.strategy)
            checkpoint[KEY] = self._averager.state_dict() if whole else {}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._loaded, self._stepped = None, -1  # no fit goes on from what was held before
        if KEY not in checkpoint:
            if trainer.state.fn == "fit":
                rank_zero_warn(f"{trainer.ckpt_path} has no state of LawaCallback; its averages start anew")
            if self._averager is not None:
                self._averager.restart()
        elif _saves_directories(trainer.strategy):  # which load when everything is set up
            if self._averager is None or self._module is not pl_module:
                self._make(trainer)
            assert self._beside is not None
            self._beside.load(Path(str(trainer.ckpt_path)) / KEY)
        else:
            self._loaded = checkpoint[KEY]  # the model may not be where it will be yet

    # ---- inside

    def _next(self, trainer: Trainer, stepped: int = 0) -> int:
        module = trainer.lightning_module
        return trainer.global_step + stepped if module.automatic_optimization else self.averager.step + 1

    def _make(self, trainer: Trainer) -> None:
        strategy = trainer.strategy
        model = strategy.model if _saves_directories(strategy) else trainer.lightning_module
        assert isinstance(model, nn.Module)
        if self._averager is not None:
            self._averager.close()
        settings = dict(self.settings)
        if not trainer.optimizers and settings.get("moments") == "reset":
            del settings["moments"]  # validation has no optimizers, and replaces nothing
        self._averager = WeightAverager(model, trainer.optimizers, **settings)
        self._beside = AveragerState(self._averager)
        self._module = trainer.lightning_module
        self._take_over()

    def _take_over(self) -> None:
        if self._loaded is not None:
            self.averager.load_state_dict(self._loaded)
            self._loaded = None

    def _save_beside(self, strategy: Any, checkpoint: dict[str, Any], filepath: Any, *args: Any, **kwargs: Any) -> None:
        directory = Path(strategy.broadcast(filepath))
        wanted = KEY in checkpoint
        type(strategy).save_checkpoint(strategy, checkpoint, filepath, *args, **kwargs)
        if wanted:
            if not directory.is_dir():
                raise LawaError(
                    f"{directory} is one file, beside which LawaCallback cannot keep its state; let "
                    f"{type(strategy).__name__} save distributed checkpoints"
                )
            assert self._beside is not None
            self._beside.save(directory / KEY)

    def _run(self, trainer: Trainer, loop: Any) -> list[dict[str, float]]:
        """The evaluation loop's run: with each average's weights, then with the plain ones; the metrics of all."""
        run = partial(type(loop).run, loop)
        if trainer.sanity_checking:
            return run()
        if self._loaded is not None and trainer.state.fn != "fit":
            self._make(trainer)
        own = self._averager if self._module is trainer.lightning_module else None
        names = [] if own is None else [name for name in own.averages if own.ready(name)]
        results = []
        for name in names:
            with self.averager.averaged(name), _apart(trainer, loop), _logged_as(trainer, f"{name}/"):
                results.append(run())
        plain = run()
        return [dict(ChainMap(*parts)) for parts in zip(plain, *results, strict=True)]  # of each dataloader


def _last_update(trainer: Trainer) -> int | None:
    """That of the fit, where it is known before."""
    last = trainer.estimated_stepping_batches
    return int(last) if 0 < last < float("inf") else None  # -1: an IterableDataset, without max_steps


def _evaluation_loops(trainer: Trainer) -> list[Any]:
    return [trainer.fit_loop.epoch_loop.val_loop, trainer.validate_loop, trainer.test_loop]


def _saves_directories(strategy: Any) -> bool:
    """Whether the model is sharded: then checkpoints are directories, which are loaded when everything is set up."""
    return strategy.restore_checkpoint_after_setup


@contextmanager
def _apart(trainer: Any, loop: Any) -> Iterator[None]:
    """A run of the loop that leaves no trace but its metrics: progress and random numbers come back.

    No callbacks; and no checkpoints that the module itself may write, for it will do so in the plain run.
    """
    callbacks = trainer.callbacks
    kept = {name: deepcopy(vars(loop)[name]) for name in ("batch_progress", "_seen_batches_per_dataloader")}
    restarting = loop.restarting
    trainer.callbacks, loop.restarting = [], False
    trainer.save_checkpoint = lambda *_, **__: None
    try:
        with isolate_rng():
            yield
    finally:
        vars(loop).update(kept)
        trainer.callbacks, loop.restarting = callbacks, restarting
        del trainer.save_checkpoint


@contextmanager
def _logged_as(trainer: Trainer, prefix: str) -> Iterator[None]:
    """What the module logs has names that begin with `prefix`."""
    module = trainer.lightning_module
    log = module.log

    def prefixed(name: str, *args: Any, **kwargs: Any) -> None:
        log(f"{prefix}{name}", *args, **kwargs)

    module.log = prefixed  # type: ignore[method-assign]
    try:
        yield
    finally:
        del module.log
