"""The settings of the optimizer's updates."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from lawa.errors import UsageError
from lawa.pretrain.schedules import SCHEDULES, learning_rate
from lawa.settings import check_at_least, check_choices, required, setting

PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How many updates, of what, by which rule."""

    updates: int = required("how many optimizer updates the run has; its last one's number")
    start: int = setting(0, "updates that the given weights have behind them: the first one here is start + 1")
    batch: int = required("sequences an update")
    micro_batch: int | None = setting(
        None, "sequences a forward of one process; default: its share of batch. It changes memory, not the batches"
    )
    lr: float = required("the peak learning rate")
    min_lr: float = setting(0.0, "the learning rate at the end of a decaying schedule")
    schedule: str = setting("cosine", "of the learning rate after warm-up", choices=SCHEDULES)
    warmup: int = setting(0, "updates over which the learning rate rises linearly to its peak")
    decay: int | None = setting(None, "wsd only: updates of the final decay; default: a fifth of the run")
    horizon: int | None = setting(None, "updates at whose end the schedule ends; default: those of the run")
    lr_scale: float = setting(1.0, "a factor on the whole schedule, min_lr too")
    rewarmup: int = setting(0, "updates after start over which the rate rises to the schedule's: for fresh moments")
    weight_decay: float = setting(0.1, "decoupled")
    decays: str = setting(
        "matrices",
        "what the weight decay is on; matrices: what has two dimensions, embeddings too (Pythia, nanoGPT); all: norms "
        "and biases, too (Amber); no_embeddings: all but embeddings (OLMo 2)",
        choices=("matrices", "all", "no_embeddings"),
    )
    beta1: float = setting(0.9, "AdamW's")
    beta2: float = setting(0.95, "AdamW's")
    eps: float = setting(1e-8, "AdamW's")
    clip: float = setting(1.0, "the largest gradient norm; 0 never clips")
    precision: str = setting(
        "fp32", "bf16, fp16: arithmetic in it under autocast, on fp32 weights; fp16 scales the loss", choices=PRECISIONS
    )
    loss_scale: float = setting(4096.0, "fp16 only: the first loss scale; Pythia's, as are the next three")
    loss_scale_window: int = setting(1000, "fp16 only: updates without an overflow before the scale doubles")
    loss_scale_hysteresis: int = setting(2, "fp16 only: overflows before the scale is halved")
    loss_scale_min: float = setting(1.0, "fp16 only: the smallest loss scale")
    activation_checkpointing: bool = setting(False, "compute activations again in backward: less memory, more time")
    compile: bool = setting(False, "torch.compile the model; the first updates take minutes, the others less time")
    sharding: str = setting(
        "none",
        "none: every process has the model (DDP); fsdp2: weights and optimizer are sharded over the processes",
        choices=("none", "fsdp2"),
    )
    device: str = setting("auto", "auto: a GPU if there is one", choices=("auto", "cpu", "cuda"))
    log_every: int = setting(10, "updates between two lines of training loss")

    def __post_init__(self) -> None:
        check_choices(self, "training")
        check_at_least(self, "training", 1, "updates", "batch", "log_every", "horizon")
        check_at_least(self, "training", 0, "start", "rewarmup")
        check_at_least(self, "training", 1, "loss_scale_window", "loss_scale_hysteresis")
        check_at_least(self, "training", 0, "warmup", "decay", "weight_decay", "clip")
        for name in ("lr", "lr_scale", "eps", "loss_scale_min"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"training.{name}={getattr(self, name)} must be above 0, and finite")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"training.{name}={getattr(self, name)} must lie in [0, 1)")
        if not 0 <= self.min_lr <= self.lr:
            raise UsageError(f"training.min_lr={self.min_lr} must lie between 0 and training.lr={self.lr}")
        if not self.loss_scale_min <= self.loss_scale < math.inf:
            raise UsageError(
                f"training.loss_scale={self.loss_scale:g} must be at least training.loss_scale_min="
                f"{self.loss_scale_min:g}, and finite"
            )
        if self.start >= self.updates:
            raise UsageError(f"training.start={self.start} leaves nothing of training.updates={self.updates}")
        whole = "updates" if self.horizon is None else "horizon"
        if self.horizon is not None and self.horizon < self.updates:
            raise UsageError(f"training.horizon={self.horizon} ends before training.updates={self.updates}; raise it")
        if self.warmup >= self.scheduled:
            raise UsageError(f"training.warmup={self.warmup} leaves nothing of training.{whole}={self.scheduled}")
        if self.decay is not None and self.schedule != "wsd":
            raise UsageError(f"training.decay has no meaning for training.schedule={self.schedule!r}; remove it")
        if self.warmup + self.decay_updates > self.scheduled:
            raise UsageError(f"training.warmup + training.decay exceed training.{whole}={self.scheduled}")
        if self.micro_batch is not None and (self.micro_batch < 1 or self.batch % self.micro_batch):
            raise UsageError(f"training.micro_batch={self.micro_batch} must divide training.batch={self.batch}")

    def without_effect(self) -> list[str]:
        """A sentence for every setting here that changes nothing."""
        idle = []
        if self.min_lr and self.schedule == "constant":
            idle.append(f"training.min_lr={self.min_lr} has no effect with training.schedule='constant'")
        if self.precision != "fp16":
            scaling = (field for field in dataclasses.fields(self) if field.name.startswith("loss_scale"))
            idle.extend(
                f"training.{field.name}={value} has no effect with training.precision={self.precision!r}"
                for field in scaling
                if (value := getattr(self, field.name)) != field.default
            )
        return idle

    @property
    def scheduled(self) -> int:
        """T: updates of the whole schedule."""
        return self.updates if self.horizon is None else self.horizon

    @property
    def decay_updates(self) -> int:
        if self.schedule != "wsd":
            return 0
        return self.scheduled // 5 if self.decay is None else self.decay

    def rate(self, t: int) -> float:
        """The learning rate of update t."""
        rate = learning_rate(
            t,
            schedule=self.schedule,
            lr=self.lr,
            min_lr=self.min_lr,
            updates=self.scheduled,
            warmup=self.warmup,
            decay=self.decay_updates,
        )
        return self.lr_scale * rate * min(1.0, (t - self.start) / self.rewarmup if self.rewarmup else 1.0)
