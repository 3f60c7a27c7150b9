"""The processes of a run: one on a CPU or a GPU, or several under torchrun or `accelerate launch`.

accelerate finds the process group, the device and DDP. FSDP2 is torch's own `fully_shard`: accelerate's needs GPUs,
and a run must be the same thing on two processes of a laptop.

What ranks tell each other beside gradients goes through a gloo group of its own: numbers on the host, so that a GPU
is never waited for, and checkpoints are written while training communicates.
"""

from __future__ import annotations

import datetime
import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import distributed, nn

from lawa.errors import LawaError, UsageError
from lawa.pretrain.sections.training import TrainingConfig

_PATIENCE = datetime.timedelta(days=7)  # one rank may tokenize or write while the others wait; a dead one is noticed


class Ranks:
    """The processes of this run, and this one's place among them.

    rank, world  this process's number and how many there are
    main         whether it is the one that writes what all share
    device       where its model lies
    writing      the gloo group of checkpoints (None in one process)
    sharded      whether the model is: FSDP2, on one process too
    """

    def __init__(self, training: TrainingConfig) -> None:
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs

        _refuse_other_launchers()
        cpu = _on_cpu(training.device)
        # Buffers are constants (rotary frequencies, masks): every rank has them.
        ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
        self.accelerator = Accelerator(mixed_precision="no", cpu=cpu, kwargs_handlers=[ddp])
        self.sharded = training.sharding == "fsdp2"
        if self.sharded and not distributed.is_initialized():
            backend = "gloo" if cpu else "nccl"
            distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)
        self.rank: int = self.accelerator.process_index
        self.world: int = self.accelerator.num_processes
        self.main = self.rank == 0
        self.device: torch.device = self.accelerator.device
        if training.batch % self.world:
            raise UsageError(
                f"training.batch={training.batch} cannot be shared by {self.world} processes; "
                "choose a multiple, or another number of processes"
            )
        self.batch = training.batch // self.world
        self.micro_batch = training.micro_batch or self.batch
        if self.batch % self.micro_batch:
            raise UsageError(
                f"training.micro_batch={self.micro_batch} must divide the {self.batch} sequences that each of "
                f"{self.world} processes has of training.batch={training.batch}"
            )
        several = self.world > 1 or self.sharded
        self._side = _gloo() if several else None
        self.writing = _gloo() if several else None

    @property
    def rows(self) -> slice:
        """This rank's part of a global batch."""
        return slice(self.rank * self.batch, (self.rank + 1) * self.batch)

    # ---- the model

    def wrap(self, model: nn.Module, precision: torch.dtype | None) -> nn.Module:
        """The module to call in training: the model itself, sharded in place, or DDP around it.

        precision  what a sharded model computes in (None: fp32); its masters and gradients' sums stay fp32
        """
        if self.sharded:
            _shard(model, self.device, precision)
            return model
        if self.world == 1:
            return model
        with warnings.catch_warnings():
            # accelerate has no other name for it yet, and torch's new one would do something else.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            return self.accelerator.prepare_model(model)

    def accumulating(self, module: nn.Module, *, last: bool) -> AbstractContextManager[object]:
        """Around a micro-batch: only the last of an update exchanges gradients."""
        if self.world == 1 or last:
            return nullcontext()
        return _unsynchronized(module) if self.sharded else self.accelerator.no_sync(module)

    # ---- what ranks tell each other

    def each(self, value: float) -> list[float]:
        """Every rank's value, in their order."""
        if self.world == 1:
            return [value]
        values = [torch.zeros((), dtype=torch.float64) for _ in range(self.world)]
        distributed.all_gather(values, torch.tensor(value, dtype=torch.float64), group=self._side)
        return [float(one) for one in values]

    def total(self, value: float) -> float:
        """The sum over ranks, in float64."""
        return sum(self.each(value))

    def wait(self) -> None:
        """Until every rank is here."""
        if self.world > 1:
            distributed.barrier(group=self._side)

    def first(self, made: Any) -> Any:
        """What the main process made."""
        return self._broadcast(made, self._side)

    def while_writing(self, made: Any) -> Any:
        """`first` and `wait` for the threads that write checkpoints."""
        made = self._broadcast(made, self.writing)
        if self.world > 1:
            distributed.barrier(group=self.writing)
        return made

    def _broadcast(self, made: Any, group: distributed.ProcessGroup | None) -> Any:
        if self.world == 1:
            return made
        told = [made]
        distributed.broadcast_object_list(told, src=0, group=group)
        return told[0]

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The block on the main process, then on the others; they all stop where it fails there."""
        failed: BaseException | None = None
        if self.main:
            try:
                yield
            except BaseException as error:
                failed = error
        sentence = self.first(None if failed is None else str(failed))
        if failed is not None:
            raise failed
        if not self.main:
            if sentence is not None:
                raise LawaError(f"rank 0 stopped: {sentence}")
            yield

    def close(self) -> None:
        """Leave the process group, and forget the model."""
        self.accelerator.free_memory()
        if self.sharded and self.world == 1 and distributed.is_initialized():
            distributed.destroy_process_group()


def leave() -> None:
    """Leave the process group, where all is done."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _gloo() -> distributed.ProcessGroup:
    """A group of all processes that talks on the host."""
    group = distributed.new_group(backend="gloo", timeout=_PATIENCE)
    assert isinstance(group, distributed.ProcessGroup)  # and not the number for a process outside it
    return group


def _refuse_other_launchers() -> None:
    for name, instead in (
        ("ACCELERATE_USE_FSDP", "leave --use_fsdp out: training.sharding=fsdp2 says whether the model is sharded"),
        ("ACCELERATE_USE_DEEPSPEED", "training.sharding=fsdp2 shards the optimizer too"),
        ("ACCELERATE_USE_MEGATRON_LM", "training.sharding=fsdp2 shards the model"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "training.sharding=fsdp2 shards the model"),
    ):
        if os.environ.get(name, "false").lower() == "true":
            raise UsageError(f"accelerate launch asks for {name}, which this driver does not use; {instead}")
    if os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no":
        raise UsageError("accelerate launch asks for a dynamo backend; leave it out: training.compile=true compiles")


def _on_cpu(device: str) -> bool:
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("training.device=cuda, but torch sees no GPU here; use cpu or auto")
    return device == "cpu" or not torch.cuda.is_available()


def _shard(model: nn.Module, device: torch.device, precision: torch.dtype | None) -> None:
    """FSDP2: each block of the model, then the rest of it."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    policy = MixedPrecisionPolicy(param_dtype=precision, reduce_dtype=torch.float32)
    blocks = set(getattr(model, "_no_split_modules", None) or ())
    for module in model.modules():
        if type(module).__name__ in blocks:
            fully_shard(module, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


@contextmanager
def _unsynchronized(module: Any) -> Iterator[None]:
    module.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        module.set_requires_gradient_sync(True)
