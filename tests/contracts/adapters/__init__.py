"""The ways of training that keep the contract: a module for each framework.

Under torchrun (test_ranks.py) the same contract runs over the ways in which several processes train.
"""

from __future__ import annotations

import os
from importlib import import_module

from contracts.adapters import plain
from contracts.contract import Adapter

# Every one of these runs every test of the contract.
LIGHT: dict[str, Adapter] = {**plain.ADAPTERS}
# Whole trainers, of which each run takes tenths of a second: resuming is tried after a few of the updates.
HEAVY: dict[str, Adapter] = {}
# {way that several processes train: the module whose ADAPTERS has it}
LAUNCHED: dict[str, str] = {}

_way = os.environ.get("LAWA_CONTRACT")
# Within such a process: that way, and no other.
RANKED: dict[str, Adapter] = (
    {_way: import_module(f"contracts.adapters.{LAUNCHED[_way]}").ADAPTERS[_way]} if _way else {}
)
