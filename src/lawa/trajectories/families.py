"""The registered trajectories: a YAML file a family, in registered/. No torch.

    family  their name
    common  fields (lawa.trajectories.description) of all of them
    sizes   {size: fields}
    runs    [{name, for: {size: […], seed: […]}, fields}]: a run for every combination; {name}, {size}, … stand for it
    one     {name: fields of that run alone}

What comes later is laid over what came before, field by field; notes are added up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from lawa.errors import require
from lawa.settings import merge
from lawa.trajectories.description import trajectory
from lawa.trajectories.trajectory import Trajectory

PLACE = Path(__file__).with_name("registered")


@cache
def registered() -> dict[str, Trajectory]:
    """{name: trajectory}, family by family."""
    yaml = require("yaml", extra="train")
    return {
        one.name: one
        for file in sorted(PLACE.glob("*.yaml"))
        for one in of_family(yaml.load(file.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    }


def of_family(values: Mapping[str, Any]) -> Iterator[Trajectory]:
    """The trajectories of one file."""
    for run in values["runs"]:
        fields = {key: value for key, value in run.items() if key not in ("name", "for")}
        every = run.get("for", {})
        for chosen in product(*every.values()):
            told = dict(zip(every, map(str, chosen), strict=True))
            name = _filled(run["name"], told)
            layers = (
                values.get("common", {}),
                values.get("sizes", {}).get(told.get("size"), {}),
                fields,
                values.get("one", {}).get(name, {}),
            )
            laid = _laid(layers)
            told |= {"name": name, "repo": _filled(laid["repo"], {**told, "name": name})}
            yield trajectory({"family": values["family"], **_filled(laid, told), "name": name})


def _laid(layers: tuple[Mapping[str, Any], ...]) -> dict[str, Any]:
    laid: dict[str, Any] = {}
    for layer in layers:
        laid = merge(laid, layer)
    laid["notes"] = [note for layer in reversed(layers) for note in layer.get("notes", ())]
    return {key: value for key, value in laid.items() if value is not None}


def _filled(value: Any, told: Mapping[str, str]) -> Any:
    """With the words for {size} and the like, in every text."""
    if isinstance(value, str):
        for name, word in told.items():
            value = value.replace(f"{{{name}}}", word)
        return value
    if isinstance(value, Mapping):
        return {_filled(key, told): _filled(below, told) for key, below in value.items() if below is not None}
    return [_filled(below, told) for below in value] if isinstance(value, list) else value
