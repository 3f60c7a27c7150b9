"""Inputs with the same content, told by comparing blocks until their first difference. No torch.

They are real: dozens of branches of EleutherAI/pythia-2.8b equal `main`, and an average would count it once for each.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from pathlib import Path

from lawa.checkpoints.catalog import AVERAGED, Catalog, Stored
from lawa.errors import LawaError
from lawa.offline.bytes_at import read_all

_FIRST = 1 << 16  # bytes of each tensor that are compared before anything else
_BLOCK = 1 << 22  # bytes of what follows that are compared at once

Place = tuple[int, int, int]  # device, file, offset: where bytes are, by whatever name


def find(catalogs: Sequence[Catalog]) -> list[list[int]]:
    """Groups of inputs (indexes, ascending) with the same bytes in every tensor that would be averaged.

    Compared are the floating tensors that all inputs have: files of two formats may hold one model, and masks beside
    it. Of inputs that differ the first block is read, as a rule; all that there is only of duplicates; and nothing of
    those that are the same files (hard links, links to one blob of the hub's cache).
    """
    names = [
        name
        for name, at in catalogs[-1].tensors.items()
        if at.dtype in AVERAGED and at.numel and all(name in one.tensors for one in catalogs)
    ]
    if not names:
        return []
    stored = [[one.tensors[name] for name in names] for one in catalogs]
    places = [_places(tensors) for tensors in stored]
    found = []
    for alike in _split(range(len(catalogs)), lambda one: tuple((at.dtype, at.shape) for at in stored[one])):
        in_place = {group[0]: group for group in _split(alike, lambda one: tuple(places[one]))}
        found += [
            sorted(one for first in equal for one in in_place[first])
            for equal in _equal(list(in_place), stored, places)
        ]
    return sorted(group for group in found if len(group) > 1)


def _equal(inputs: list[int], stored: Sequence[list[Stored]], places: Sequence[list[Place]]) -> list[list[int]]:
    """`inputs`, all of one form, split by content."""
    alone: list[list[int]] = []
    together = [inputs]
    for tensor, start, stop in _parts(stored[inputs[0]]):
        split: list[list[int]] = []
        for group in together:
            if len(group) == 1:
                alone.append(group)
                continue
            read: dict[Place, bytes] = {}
            for one in group:
                if places[one][tensor] not in read:
                    read[places[one][tensor]] = _read(stored[one][tensor], start, stop)
            split += _split(group, lambda one, read=read, tensor=tensor: read[places[one][tensor]])
        together = split
        if not together:
            break
    return alone + together


def _parts(tensors: Sequence[Stored]) -> Iterator[tuple[int, int, int]]:
    """(tensor, start, stop) in bytes: the first block of each, and then the rest of each."""
    for index, stored in enumerate(tensors):
        yield index, 0, min(_FIRST, stored.nbytes)
    for index, stored in enumerate(tensors):
        for start in range(_FIRST, stored.nbytes, _BLOCK):
            yield index, start, min(start + _BLOCK, stored.nbytes)


def _split(inputs: Iterable[int], key: Callable[[int], Hashable]) -> list[list[int]]:
    groups: dict[Hashable, list[int]] = {}
    for one in inputs:
        groups.setdefault(key(one), []).append(one)
    return list(groups.values())


def _places(tensors: Iterable[Stored]) -> list[Place]:
    known: dict[Path, os.stat_result] = {}
    for stored in tensors:
        if stored.file not in known:
            known[stored.file] = stored.file.stat()
    return [(known[at.file].st_dev, known[at.file].st_ino, at.offset) for at in tensors]


def _read(stored: Stored, start: int, stop: int) -> bytes:
    try:
        descriptor = os.open(stored.file, os.O_RDONLY)
        try:
            return bytes(read_all(descriptor, stop - start, stored.offset + start))
        finally:
            os.close(descriptor)
    except OSError as failed:
        raise LawaError(f"{stored.file} cannot be read ({failed.strerror})") from None
