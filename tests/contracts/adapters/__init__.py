"""The ways of training that keep the contract: a module for each framework.

Under torchrun (test_ranks.py) the same contract runs over the ways in which several processes train.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from contracts.adapters import plain
from contracts.contract import Adapter, Run


def late(way: str, module: str) -> Adapter:
    """The adapter of `module`, which imports its framework when it first runs."""

    def run(*args: Any, **kwargs: Any) -> Run:
        return import_module(f"contracts.adapters.{module}").ADAPTERS[way](*args, **kwargs)

    return run


# Every one of these runs every test of the contract.
LIGHT: dict[str, Adapter] = {**plain.ADAPTERS}
# Whole trainers, of which each run takes tenths of a second: resuming is tried after a few of the updates.
HEAVY: dict[str, Adapter] = {
    "HF Trainer": late("HF Trainer", "transformers"),
    "Lightning": late("Lightning", "lightning"),
    "Accelerate": late("Accelerate", "accelerate"),
    "Accelerate in two halves": late("Accelerate in two halves", "accelerate"),
}
# {way that several processes train: the module whose ADAPTERS has it}
LAUNCHED: dict[str, str] = {
    **dict.fromkeys(("DDP", "DDP, shared snapshots"), "ddp"),
    **dict.fromkeys(("FSDP2", "FSDP2, snapshots on disk"), "fsdp2"),
    "tensor parallel": "tensor_parallel",
    **dict.fromkeys(("ZeRO-1", "ZeRO-2", "ZeRO-3"), "deepspeed"),
    "HF Trainer, DDP": "transformers",
    "Lightning DDP": "lightning",
    "Lightning FSDP2": "lightning",
    "Accelerate DDP": "accelerate",
    "Accelerate FSDP2": "accelerate",
}

_way = os.environ.get("LAWA_CONTRACT")
# Within such a process: that way, and no other.
RANKED: dict[str, Adapter] = (
    {_way: import_module(f"contracts.adapters.{LAUNCHED[_way]}").ADAPTERS[_way]} if _way else {}
)
