"""Weights by name as a model of transformers: its own class, its own loading, and no code that comes with a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from lawa.errors import LawaError

_GENERATION = "generation_config.json"


def read_shape(source: str | Path) -> Any:
    """transformers' configuration of the model in a folder, a config.json, or a name on the hub."""
    with one_sentence(f"{source}: transformers cannot read its configuration"):
        shape = AutoConfig.from_pretrained(str(source), trust_remote_code=False)
    if getattr(shape, "quantization_config", None):
        raise LawaError(f"{source} is quantized, and its tensors are no weights; give the model that it was made from")
    return shape


def make_model(
    shape: Any,
    weights: Mapping[str, Tensor],
    *,
    label: str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    home: Path | None = None,
) -> PreTrainedModel:
    """The causal language model of `shape` with `weights`, in `dtype` on `device`, in eval mode.

    weights  by the names of transformers' files or of its modules; those in `dtype` on the host are used as they lie
             there, without a copy, so nobody else may write to them
    label    what messages call them
    home     the folder whose generation_config.json it has, if there is one

    transformers itself loads them, as from a directory. It takes some 20 ms of its own, so each checkpoint has a
    model of its own. Raises LawaError for weights that do not fit, naming the first one.
    """
    with (
        one_sentence(f"{label}: no causal language model can be made of {type(shape).__name__}"),
        torch.device("meta"),
    ):
        own = type(AutoModelForCausalLM.from_config(shape, dtype=dtype))
    with quiet(), one_sentence(f"{label}: transformers cannot load its weights"):
        model, report = own.from_pretrained(
            None,
            config=shape,
            state_dict=dict(weights),
            dtype=dtype,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            output_loading_info=True,
        )
    refuse_misfits(label, own.__name__, report, "name the config.json of this model (--config)")
    if home is not None and (home / _GENERATION).is_file():
        model.generation_config = GenerationConfig.from_pretrained(str(home))
    return model.to(device).eval()


def refuse_misfits(label: str, own: str, report: Mapping[str, Any], remedy: str) -> None:
    """Raise LawaError for what transformers' loading `report` has of weights that a model of class `own` lacks, has no
    place for, or has in another shape."""
    for what, sentence in (
        ("missing_keys", "lacks {}, which " + own + " has"),
        ("unexpected_keys", "holds {}, for which " + own + " has no place"),
        ("mismatched_keys", "holds {} in another shape than " + own + " has it"),
    ):
        names = sorted(key if isinstance(key, str) else key[0] for key in report[what])
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise LawaError(f"{label} {sentence.format(names[0] + more)}; {remedy}")


@contextmanager
def one_sentence(
    what: str, remedy: str = "give a model that transformers has itself, whole and undamaged"
) -> Iterator[None]:
    """Anything that the libraries raise, as one LawaError: `what`, their first line, the remedy."""
    try:
        yield
    except LawaError:
        raise
    except Exception as failed:  # OSError, ValueError, KeyError, RuntimeError, httpx's, safetensors' and pickle's own
        line = str(failed).strip().partition("\n")[0].rstrip(".")
        raise LawaError(f"{what} ({type(failed).__name__}: {line}); {remedy}") from failed


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' bar and its report on what it loaded: what is wrong in it is raised."""
    level, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bar:
            transformers_logging.enable_progress_bar()
