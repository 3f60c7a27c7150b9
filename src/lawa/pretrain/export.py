"""A sharded run's checkpoint, which torch DCP wrote, as a Hugging Face model directory."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from lawa.checkpoints.publish import is_published, publish, verify
from lawa.errors import LawaError, UsageError
from lawa.pretrain.checkpoint import sharded
from lawa.pretrain.inspect_tensors import format_of


def check_exportable(checkpoint: Path) -> None:
    """Raise unless `checkpoint` is a whole one in format "dcp"."""
    if not checkpoint.is_dir():
        raise UsageError(f"{checkpoint} is no directory; name a checkpoint, as RUN/checkpoints/step00001000")
    if not is_published(checkpoint):
        raise LawaError(f"{checkpoint} is no whole checkpoint (it has no manifest); name one that is")
    if format_of(checkpoint) != "dcp":
        raise UsageError(
            f"{checkpoint} has no sharded weights; where it has a model.safetensors, it is a Hugging Face model "
            "directory already"
        )


def export(checkpoint: Path, output: Path) -> None:
    """Write the weights of `checkpoint`, in fp32, to the new directory `output`, with its configuration and tokenizer.

    One process, no GPU, no group of processes; the memory of one whole model. Raises LawaError for a damaged one.
    """
    check_exportable(checkpoint)
    verify(checkpoint)
    transformers_logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(checkpoint), dtype=torch.float32)
    with publish(output) as partial:
        sharded.export(checkpoint, partial, model)
        for file in checkpoint.iterdir():
            if file.is_file() and file.name not in ("manifest.json", "config.json"):
                shutil.copy(file, partial / file.name)
