"""An average as one model directory, from any number of processes.

    save_average(averager, "lawa-1000")      every rank calls
    AutoModelForCausalLM.from_pretrained("lawa-1000")

    DIRECTORY/model.safetensors              above a size model-00001-of-0000N.safetensors and an index
              config.json  generation_config.json  (of a transformers model)
              provenance.json  manifest.json

A model that a process has whole is written by rank 0, by transformers where it is transformers'; of a sharded one
every rank writes its shards, and nobody has it whole (sharded_files).
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lawa.averaging.averager import WeightAverager
from lawa.averaging.layout import like, local
from lawa.averaging.matching import canonical
from lawa.checkpoints import sharded_files
from lawa.checkpoints.carry import PROVENANCE
from lawa.checkpoints.publish import begin, complete
from lawa.checkpoints.together import from_first
from lawa.errors import LawaError, NonFiniteAverage
from lawa.records import provenance

FILE_BYTES = 5 * 10**9

Tensors = dict[str, Tensor]


def save_average(
    averager: WeightAverager,
    directory: str | os.PathLike[str],
    *,
    name: str | None = None,
    dtype: str | torch.dtype | None = None,
    max_shard_size: int = FILE_BYTES,
) -> Path:
    """Publish the average `name` of what the averager holds as the new model directory `directory`; its path.

    With torch.distributed every rank calls (a shared file system). The model's own weights come back as after
    `averaged(name)`. What is written are the bits that the model has within `averaged(name)`: parameters averaged,
    frozen ones and buffers as they are, tied weights once, under the names that save_pretrained gives them.

    name            of the average; default: the only one
    dtype           of the floating-point tensors, "bfloat16" for example; default: the model's own. What is rounded
                    by it is marked in provenance.json
    max_shard_size  bytes above which the weights are split into several files; a larger tensor has one of its own

    Raises LawaError where the average holds nothing or `directory` exists, and NonFiniteAverage for an inf or nan,
    on every rank; nothing is left behind then.
    """
    directory, to = Path(directory), _dtype(dtype)
    with averager.averaged(name) as wrapped, torch.no_grad():
        own = next(iter(averager.averages)) if name is None else name
        if not averager.is_finite(own):
            raise NonFiniteAverage(f"the average {own!r} is not finite; {directory} was not written")
        model = _unwrapped(wrapped)
        tensors = _tensors(model)
        made = json.dumps(provenance_of(averager, own, tensors, to), indent=1) + "\n"
        partial = from_first(lambda: begin(directory))
        try:
            if any(sharded_files.is_sharded(tensor) for tensor in tensors.values()):
                _write_sharded(partial, model, _cast(tensors, to), max_shard_size)
            else:
                from_first(lambda: _write_whole(partial, model, tensors, to, max_shard_size))
            from_first(lambda: (partial / PROVENANCE).write_text(made, encoding="utf-8"))
            from_first(lambda: complete(partial, directory))
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    return directory


def _write_whole(
    partial: Path, model: nn.Module, tensors: Tensors, to: torch.dtype | None, max_shard_size: int
) -> None:
    on_host = {id(tensor): tensor.detach().cpu() for tensor in tensors.values()}  # tied ones stay tied
    tensors = _cast({name: on_host[id(tensor)] for name, tensor in tensors.items()}, to)
    if not _is_transformers(model):
        sharded_files.write(partial, _once(tensors), max_shard_size)
        return
    model.save_pretrained(partial, state_dict=tensors, max_shard_size=max_shard_size)  # type: ignore[operator]
    if to is not None:
        file = partial / "config.json"
        config = {**json.loads(file.read_text(encoding="utf-8")), "dtype": _short(to)}
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_sharded(partial: Path, model: nn.Module, tensors: Tensors, max_shard_size: int) -> None:
    if not _is_transformers(model):
        sharded_files.write(partial, _once(tensors), max_shard_size)
        return
    twin = without_weights(model)
    names = _saved_names(twin, tensors)
    sharded_files.write(partial, {names[name]: tensors[name] for name in names}, max_shard_size)
    dtype = next(tensor.dtype for tensor in tensors.values() if tensor.is_floating_point())
    from_first(lambda: write_config(partial, model, twin, dtype))


def write_config(partial: Path, model: Any, twin: Any, dtype: torch.dtype) -> None:
    """As save_pretrained does, which cannot without the weights."""
    twin.config.dtype = _short(dtype)
    twin.config.architectures = [type(twin).__name__]
    twin.config.save_pretrained(partial)
    if model.can_generate():
        model.generation_config.save_pretrained(partial)


def without_weights(model: Any) -> Any:
    """The same model on "meta", of transformers' own class: fully_shard has made one of its own of `model`.

    transformers finds the names of saved tensors by the class's name.
    """
    own = next(kind for kind in type(model).__mro__ if not hasattr(kind, "reshard"))
    with torch.device("meta"):
        twin = own(copy.deepcopy(model.config))
    if hasattr(model, "_weight_conversions"):  # those of the checkpoint that it was loaded from
        twin._weight_conversions = model._weight_conversions
    return twin


def _saved_names(twin: Any, names: Iterable[str]) -> dict[str, str]:
    """{name: the name that save_pretrained gives this tensor}; of tied ones, those that are saved.

    Found by transformers' own functions, on tensors without memory. A model whose tensors save_pretrained gives another
    shape (experts one by one) keeps its own names, which from_pretrained reads too.
    """
    from transformers.core_model_loading import revert_weight_conversion
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    state = twin.state_dict(keep_vars=True)
    ignored = set(twin._keys_to_ignore_on_save or ())
    kept = remove_tied_weights_from_state_dict(
        {name: state[name] for name in names if name in state and name not in ignored}, twin
    )
    added = {name: name for name in names if name not in state}
    own = {id(tensor): name for name, tensor in kept.items()}
    saved = revert_weight_conversion(twin, dict(kept))
    if {id(tensor) for tensor in saved.values()} != own.keys():
        return {name: name for name in kept} | added
    return {own[id(tensor)]: name for name, tensor in saved.items()} | added


def _unwrapped(model: nn.Module) -> nn.Module:
    """Without what torch.compile, DDP and DeepSpeed have put around it."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod  # type: ignore[assignment]
        elif type(model).__name__ in ("DistributedDataParallel", "DeepSpeedEngine"):
            model = model.module  # type: ignore[assignment]
        else:
            return model


def _tensors(model: nn.Module) -> Tensors:
    """Parameters and the buffers that belong to the model's state; tied ones are the same object."""
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        raise LawaError(
            "DeepSpeed ZeRO-3 has partitioned the model; within averaged(), save the engine's checkpoint, and convert "
            "it with DeepSpeed's zero_to_fp32"
        )
    return {
        canonical(name): tensor
        for name, tensor in model.state_dict(keep_vars=True).items()
        if isinstance(tensor, Tensor)
    }


def _once(tensors: Tensors) -> Tensors:
    """Tied tensors under the first of their names."""
    first = {id(tensor): name for name, tensor in reversed(tensors.items())}
    return {name: tensor for name, tensor in tensors.items() if first[id(tensor)] == name}


def _cast(tensors: Tensors, to: torch.dtype | None) -> Tensors:
    """Floating-point tensors in dtype `to`, a DTensor by its shard; tied ones stay tied."""
    if to is None:
        return tensors
    cast = {
        id(tensor): like(tensor, local(tensor).to(to)) if tensor.is_floating_point() else tensor
        for tensor in tensors.values()
    }
    return {name: cast[id(tensor)] for name, tensor in tensors.items()}


def provenance_of(
    averager: WeightAverager, name: str, tensors: Mapping[str, Tensor], to: torch.dtype | None
) -> dict[str, Any]:
    """The content of provenance.json for the average `name`; `to`: what its `tensors` are rounded to, if anything."""
    floats = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    return {
        **averager.told(name),
        "dtype": sorted({_short(to or dtype) for dtype in floats}),
        "rounded": to is not None and any(torch.promote_types(dtype, to) != to for dtype in floats),
        **provenance(),
    }


def _dtype(given: str | torch.dtype | None) -> torch.dtype | None:
    found = getattr(torch, given, None) if isinstance(given, str) else given
    if given is not None and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise LawaError(f"dtype={given!r} must name a floating-point type, as 'bfloat16'")
    return found


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _is_transformers(model: nn.Module) -> bool:
    """Without importing transformers: where nobody has, no model is one of its."""
    return isinstance(model, getattr(sys.modules.get("transformers"), "PreTrainedModel", ()))
