"""What can be told of an averager's settings before there is a model, and of a training before it begins."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from lawa.averaging.averager import WeightAverager, estimate


def check_settings(settings: dict[str, Any]) -> None:
    """Raise what WeightAverager(model, optimizer, **settings) would raise for any model; nothing is allocated.

    What needs the model and its processes is left for later: replicas "split", a placement that is made of the layout,
    and whether there is room for the snapshots.
    """
    known = dict(settings)
    if known.get("replicas") == "split":
        del known["replicas"]
    if callable(known.get("placement")):
        del known["placement"]
    stand_in = nn.ParameterList([torch.zeros(1)])  # which draws nothing at random
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they come with the averager
        estimate(stand_in, torch.optim.AdamW(stand_in.parameters()), **known)


def warn_what_is_never_ready(averager: WeightAverager, *, after: int, last: int) -> None:
    """Warn of each average that does not get its captures in the updates after `after`, up to and including `last`."""
    rule = averager.replacement
    for name, average in averager.averages.items():
        if rule is not None and rule.name == name and averager.last_replacement is not None:
            continue  # it was ready, and may have been cleared since
        due = average.cadence.updates
        captures = averager.count(name) + len(due(last)) - len(due(min(after, last)))
        if captures < average.needed:
            warnings.warn(
                f"the average {name!r} ({average}) needs {average.needed} captures and gets {captures} until the "
                f"last update, {last}: it will never be ready; choose a smaller every, window or min_window",
                stacklevel=2,
            )
