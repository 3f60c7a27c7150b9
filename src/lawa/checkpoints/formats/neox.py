"""GPT-NeoX layer files: model-parallel ranks merged, names as transformers has them. No torch unless it is needed.

    layer_00-model_00-model_states.pt   the embedding as rank 0 has it; model_01 …: further ranks

One rank's tensors are read in place; of several, one layer at a time is put together.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lawa.checkpoints.formats import single
from lawa.checkpoints.formats.form import Format, Scratch, Tensors
from lawa.checkpoints.layouts.neox import Rule, first_missing, last_norm, place_of
from lawa.errors import LawaError

_FILE = re.compile(r"layer_(\d+)-model_(\d+)-model_states\.pt")

Layers = dict[int, list[Path]]
Places = dict[tuple[int, str], tuple[str, Rule]]


def find(directory: Path) -> Format | None:
    """The layer files of `directory`, if it has any; LawaError where one of them is missing."""
    files = {
        (int(match[1]), int(match[2])): entry
        for entry in directory.iterdir()
        if (match := _FILE.fullmatch(entry.name)) and entry.is_file()
    }
    if not files:
        return None
    ranks = 1 + max(rank for _, rank in files)
    numbers = sorted({layer for layer, _ in files})
    for layer, rank in ((layer, rank) for layer in numbers for rank in range(ranks)):
        if (layer, rank) not in files:
            raise _missing(directory, layer, rank)
    layers = {layer: [files[layer, rank] for rank in range(ranks)] for layer in numbers}
    if ranks > 1:
        return Format("neox", False, partial(_merged, directory, layers))
    found = {layer: single.find(file) for layer, [file] in layers.items()}
    return Format("neox", any(form.whole for form in found.values()), partial(_in_place, directory, found))


def _in_place(directory: Path, layers: Mapping[int, Format], scratch: Scratch) -> Tensors:
    found = {layer: form.read(scratch).places for layer, form in layers.items()}
    places = _placed(directory, found)
    return Tensors({own: found[layer][name] for (layer, name), (own, _) in places.items()})


def _merged(directory: Path, layers: Layers, scratch: Scratch) -> Tensors:
    from lawa.checkpoints.formats.spool import spool
    from lawa.checkpoints.formats.torch_file import names

    places = _placed(directory, {layer: names(files[0]) for layer, files in layers.items()})
    nbytes = sum(file.stat().st_size for files in layers.values() for file in files)
    return Tensors(spool(directory, _merge_all(layers, places), nbytes, scratch))


def _merge_all(layers: Layers, places: Places) -> Iterator[tuple[str, Any]]:
    """One layer of all ranks is in memory at a time."""
    from lawa.checkpoints.formats.torch_file import state_dict

    for layer, files in layers.items():
        ranks = [state_dict(file) for file in files]
        for name in ranks[0]:
            lacking = next((file for file, rank in zip(files, ranks, strict=True) if name not in rank), None)
            if lacking:
                raise LawaError(f"{lacking} lacks {name!r}, which {files[0].name} has; fetch both again")
            own, rule = places[layer, name]
            try:
                merged = _merge([rank[name] for rank in ranks], rule)
            except (RuntimeError, IndexError) as unfit:
                raise LawaError(f"{files[0]}: the ranks' parts of {name!r} do not fit together ({unfit})") from None
            yield own, merged


def _merge(parts: list[Any], rule: Rule) -> Any:
    import torch

    if rule == "first":
        return parts[0]
    if rule in ("rows", "columns"):
        return torch.cat(parts, dim=0 if rule == "rows" else 1)
    summed = sum(parts[1:], start=parts[0])
    return summed / len(parts) if rule == "mean" else summed


def _placed(directory: Path, layers: Mapping[int, Collection[str]]) -> Places:
    """{(layer, name): its place in transformers' model}; raise for a layer that is missing, or of another model."""
    norm = last_norm(layers)
    if norm is None:
        raise LawaError(f"{directory} lacks the layer file of the last norm (norm.weight); fetch the whole checkpoint")
    missing = first_missing(layers.keys(), norm)
    if missing is not None:
        raise _missing(directory, missing, 0)
    places: Places = {}
    taken: dict[str, int] = {}
    for layer, name in ((layer, name) for layer, names in layers.items() for name in names):
        place = place_of(layer, name)
        if place is None:
            raise LawaError(
                f"{directory}: layer {layer} has {name!r}, which transformers' GPTNeoX does not have; other "
                "architectures are not read from layer files"
            )
        if taken.setdefault(place[0], layer) != layer:
            raise LawaError(f"{directory}: layers {taken[place[0]]} and {layer} both have {name!r}; fetch them again")
        places[layer, name] = place
    return places


def _missing(directory: Path, layer: int, rank: int) -> LawaError:
    return LawaError(f"{directory} lacks layer_{layer:02}-model_{rank:02}-model_states.pt; fetch the whole checkpoint")
