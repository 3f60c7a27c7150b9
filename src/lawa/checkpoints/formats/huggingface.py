"""Directories as transformers writes them: safetensors or .bin, in one file or in shards that an index lists. No torch.

The index comes from anywhere: its files lie in its directory, are there, and hold the tensors that it places in them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from lawa.checkpoints.catalog import WEIGHTS, Stored
from lawa.checkpoints.formats import single
from lawa.checkpoints.formats.form import Format, Scratch, Tensors
from lawa.checkpoints.publish import refuse_outside
from lawa.errors import LawaError


def find(directory: Path) -> Format | None:
    """The weights that from_pretrained would take from `directory`, if any."""
    name = next((name for name in WEIGHTS if (directory / name).is_file()), None)
    if name is None:
        return None
    if not name.endswith(".json"):
        found = single.find(directory / name)
        return Format("hf", found.whole, found.read)
    index = directory / name
    listed = _weight_map(index)
    shards = {shard: single.find(_shard(index, shard)) for shard in sorted(set(listed.values()))}
    return Format("hf", any(shard.whole for shard in shards.values()), partial(_read, index, listed, shards))


def _read(index: Path, listed: Mapping[str, str], shards: Mapping[str, Format], scratch: Scratch) -> Tensors:
    """All tensors of all shards, as from_pretrained takes them; of one in several, that which the index means."""
    places: dict[str, Stored] = {}
    metadata: dict[str, str] = {}
    for shard, form in shards.items():
        found = form.read(scratch)
        metadata |= found.metadata
        for name, stored in found.places.items():
            if listed.get(name, shard) != shard:
                continue
            if name in places:
                raise LawaError(f"{index} does not list {name!r}, which several of its files hold; fetch them again")
            places[name] = stored
    for name, shard in listed.items():
        if name not in places:
            raise LawaError(f"{index.parent / shard} lacks {name!r}, which {index.name} places there; fetch both again")
    return Tensors(places, metadata)


def _weight_map(index: Path) -> dict[str, str]:
    """{tensor: file}, every file named inside the index's directory."""
    try:
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        whole = all(isinstance(shard, str) for shard in listed.values())
    except OSError as unreadable:
        raise LawaError(f"{index} cannot be read ({unreadable.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as bad:
        raise LawaError(f"{index} is no index of shards ({str(bad)[:100]!r}); it is damaged") from None
    if not (listed and whole):
        raise LawaError(f"{index} is no index of shards (its weight_map names no files); it is damaged")
    for shard in set(listed.values()):
        refuse_outside(shard, index)
    return listed


def _shard(index: Path, name: str) -> Path:
    if not os.path.isfile(index.parent / name):  # noqa: PTH113 (Path.is_file raises for names that no file can have)
        raise LawaError(f"{index.parent} lacks {name!r}, which {index.name} lists; fetch it, or the whole checkpoint")
    return index.parent / name
