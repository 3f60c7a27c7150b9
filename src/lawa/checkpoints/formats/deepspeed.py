"""DeepSpeed checkpoints: the fp32 masters of ZeRO 1 to 3, put together by DeepSpeed's own zero_to_fp32. No torch.

    global_step1000/zero_pp_rank_R_mp_rank_00_optim_states.pt  mp_rank_00_model_states.pt     and latest beside it

zero_to_fp32 asks torch.load for full pickles; torch is told to refuse them, but for the few classes of DeepSpeed's own
that its checkpoints hold. What it leaves out (the frozen parameters of ZeRO-1) is taken from the model states.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from lawa.checkpoints.catalog import Stored
from lawa.checkpoints.formats import single
from lawa.checkpoints.formats.form import Format, Scratch, Tensors
from lawa.checkpoints.publish import refuse_outside
from lawa.errors import LawaError, require

_OPTIMIZER = "*zero_pp_rank_*_optim_states.pt"
_MODEL = "mp_rank_00_model_states.pt"
_FORCE, _FORCE_NOT = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


def find(directory: Path) -> Format | None:
    """A checkpoint of ZeRO, or of DeepSpeed without it; `directory` is it, or has it as its `latest`."""
    latest = directory / "latest"
    if latest.is_file():
        tag = latest.read_text(encoding="utf-8", errors="replace").strip()
        refuse_outside(tag, latest)
        if not os.path.isdir(directory / tag):  # noqa: PTH112 (Path.is_dir raises for names that no folder can have)
            raise LawaError(f"{directory} lacks {tag!r}, which its file latest names; fetch it, or name another folder")
        directory = directory / tag
    if any(directory.glob("*mp_rank_01_*.pt")):
        raise LawaError(
            f"{directory} is of several model-parallel ranks, which DeepSpeed's zero_to_fp32 does not put together; "
            "average what your trainer exports"
        )
    if any(directory.glob(_OPTIMIZER)):
        return Format("deepspeed", True, partial(_read, directory))
    if (directory / _MODEL).is_file():
        with _weights_only():
            found = single.find(directory / _MODEL)
        return Format("deepspeed", found.whole, partial(_read_module, found))
    return None


def _read_module(form: Format, scratch: Scratch) -> Tensors:
    with _weights_only():
        return form.read(scratch)


def _read(directory: Path, scratch: Scratch) -> Tensors:
    from lawa.checkpoints.formats.spool import spool

    state = _masters(directory)
    first: dict[int, str] = {}  # zero_to_fp32 gives tied ones as the same object
    names = {name: first.setdefault(id(tensor), name) for name, tensor in state.items()}
    nbytes = sum(state[name].shape.numel() * state[name].dtype.itemsize for name in first.values())
    made = ((name, _whole(directory, name, state[name])) for name in first.values())
    places = spool(directory, made, nbytes, scratch)
    kept: dict[str, Stored] = {}
    if (directory / _MODEL).is_file():  # of ZeRO-3 no rank has the model
        with _weights_only():
            kept = single.find(directory / _MODEL).read(scratch).places
    return Tensors(
        {name: places[own] for name, own in names.items()} | {n: s for n, s in kept.items() if n not in names}
    )


def _masters(directory: Path) -> dict[str, Any]:
    """By zero_to_fp32, tensors or (ZeRO-3) what .contiguous() puts a tensor together of."""
    with _silent():
        zero_to_fp32: Any = require("deepspeed.utils.zero_to_fp32", extra="deepspeed")
        try:
            with _weights_only():
                return zero_to_fp32.get_fp32_state_dict_from_zero_checkpoint(
                    str(directory.parent), tag=directory.name, lazy_mode=True
                )
        except Exception as bad:  # of a damaged checkpoint DeepSpeed raises whatever its code meets
            raise _refused(directory, bad) from None


def _whole(directory: Path, name: str, tensor: Any) -> Any:
    try:
        return tensor.contiguous()
    except Exception as bad:
        raise _refused(directory, bad, f"put {name!r} together") from None


def _refused(directory: Path, why: Exception, what: str = "read it") -> LawaError:
    from lawa.checkpoints.formats.torch_file import told, unpickled

    if wants := unpickled(why):
        return LawaError(
            f"{directory} holds {wants}, which only a pickle that may run anything would load, so it is not loaded; "
            "where you trust it, run its zero_to_fp32.py"
        )
    return LawaError(f"{directory}: DeepSpeed's zero_to_fp32 cannot {what} ({told(why)}); is it complete?")


@contextlib.contextmanager
def _weights_only() -> Iterator[None]:
    """torch.load refuses pickles, even where it is asked for them."""
    import torch

    with _silent():
        known = _of_deepspeed()
    before = {name: os.environ.pop(name, None) for name in (_FORCE, _FORCE_NOT)}
    os.environ[_FORCE] = "1"
    try:
        with torch.serialization.safe_globals(known):
            yield
    finally:
        del os.environ[_FORCE]
        os.environ.update({name: value for name, value in before.items() if value is not None})


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """DeepSpeed prints what it does, and what it is missing when it is imported."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _of_deepspeed() -> list[Any]:
    """The classes in its checkpoints, which hold values and do nothing."""
    if importlib.util.find_spec("deepspeed") is None:
        return []
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]
