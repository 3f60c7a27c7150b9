"""The averager's state: what a fresh process needs to go on in the middle of a window.

    {"meta": JSON text, "snapshots": {"00001000": {tensor name: tensor}}, "running": {average: {tensor name: tensor}}}

Plain values are one JSON text, so that torch.save, DCP and weights_only loading all carry them. Tensors are
views of the live state; those of a sharded model are DTensors, so DCP writes each rank's shard and can load
them on another number of ranks. DCP loads in place, into what `state_dict` returns: a fresh averager must
first make room for the snapshots that the checkpoint holds, which `prepare_to_load` does from its metadata.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Container, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from lawa.averaging.averages import rule
from lawa.averaging.collection import Collection
from lawa.averaging.layout import Snapshot, local, named
from lawa.averaging.matching import check_same
from lawa.averaging.window import Held
from lawa.errors import LawaError


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where an averager stands, in updates.

    step              the last one seen
    pending           the one whose replacement was not carried out yet
    last_replacement  the one of the last replacement
    """

    step: int = 0
    pending: int | None = None
    last_replacement: int | None = None


def state_dict(collection: Collection, position: Position, *, without: Container[int] = ()) -> dict[str, Any]:
    windows, running = collection.windows, collection.running
    held = windows.snapshots()
    meta = {
        **asdict(position),
        "windows": {name: ring.steps for name, ring in windows.rings.items()},
        "running": {name: average.count for name, average in running.items()},
        "rules": {name: rule(average) for name, average in collection.averages.items()},
        "skipped": [one.step for one in held if one.skipped],
        "form": collection.layout.form,
    }
    snapshots = {one.step: one.snapshot for one in held} | collection.prepared
    if collection.store.durable:
        snapshots = {}
    return {
        "meta": json.dumps(meta),
        "snapshots": {
            _key(step): _named(collection, snapshot) for step, snapshot in snapshots.items() if step not in without
        },
        "running": {name: named(average.state_parts()) for name, average in running.items() if average.state},
    }


def load_state_dict(collection: Collection, state: Mapping[str, Any], *, replaces: bool) -> Position:
    """Fill the collection and return the saved position; everything is checked before anything is changed.

    replaces  whether a pending replacement can be carried out
    """
    meta = _checked_meta(collection, state, replaces=replaces)
    windows, running = collection.windows, collection.running
    # A smaller window takes the latest of what the saved one held.
    steps = {name: meta["windows"][name][-ring.window.size :] for name, ring in windows.rings.items()}
    wanted = sorted({step for held in steps.values() for step in held})
    saved = {
        step: _tensors_of(state["snapshots"], _key(step), f"snapshot of update {step}")
        for step in wanted
        if not collection.store.durable
    }
    readings = {
        name: _tensors_of(state["running"], name, f"average {name!r}")
        for name, count in meta["running"].items()
        if count
    }
    entries = {entry.name: entry for group in collection.layout for entry in group.entries}
    references = {name: entry.reference for name, entry in entries.items()}
    for step, tensors in saved.items():
        where = f"the saved snapshot of update {step}"
        _check(references, tensors, where)
        for name, entry in entries.items():
            if tensors[name].dtype != entry.dtype:
                raise LawaError(
                    f"{where}: tensor {name!r} is {tensors[name].dtype} where the model has {entry.dtype}; "
                    "load it into a model of the dtype it was saved from"
                )
    for name, tensors in readings.items():
        running[name].allocate()
        _check(named(running[name].state_parts()), tensors, f"the saved average {name!r}")

    if collection.store.durable:
        snapshots = {step: collection.store.empty(step) for step in wanted}  # raises where it has not got one
    else:
        snapshots = _take_over(collection, saved)
    for ring in windows.rings.values():
        ring.held.clear()
    for step in wanted:
        held = Held(step, snapshots[step], step in meta["skipped"])
        windows.hold(held, [ring for name, ring in windows.rings.items() if step in steps[name]])
    for name, average in running.items():
        if name in readings:
            _copy(named(average.state_parts()), readings[name])
        else:
            average.clear()
        average.count = meta["running"][name]
    collection.prepared = {}
    return Position(**{name: meta[name] for name in ("step", "pending", "last_replacement")})


def prepare_to_load(collection: Collection, checkpoint: Any, key: str) -> None:
    """Make room for the snapshots and running averages that a DCP checkpoint holds under `key`.

    What the averager held before is let go: DCP asks the checkpoint for exactly what it is shown.
    """
    from torch.distributed.checkpoint import FileSystemReader

    reader = checkpoint if hasattr(checkpoint, "read_metadata") else FileSystemReader(checkpoint)
    try:
        names = reader.read_metadata().state_dict_metadata
    except OSError as missing:
        raise LawaError(f"{checkpoint} is no DCP checkpoint ({missing.strerror}: {missing.filename})") from None
    if f"{key}.meta" not in names:
        others = sorted({name.split(".")[0] for name in names})
        raise LawaError(f"{checkpoint} holds no averager under {key!r}; it has {others}")
    prefix = f"{key}.snapshots."
    steps = {int(name[len(prefix) :].split(".")[0]) for name in names if name.startswith(prefix)}
    prefix = f"{key}.running."
    saved = {name[len(prefix) :].split(".")[0] for name in names if name.startswith(prefix)}
    if not saved <= set(collection.running):
        raise LawaError(
            f"{checkpoint} has the running averages {sorted(saved)} under {key!r}, this averager "
            f"{sorted(collection.running)}; make it with the same averages"
        )
    running = [name for name in collection.running if name in saved]
    make_room(collection, steps, running)


def room_of(collection: Collection, meta: str, *, replaces: bool) -> tuple[set[int], list[str]]:
    """What `make_room` needs to be told for a state with this `meta`: snapshots' updates, running averages' names.

    Raises LawaError where the state is not this averager's. A smaller window has room for its latest ones alone.
    """
    told = _checked_meta(collection, {"meta": meta}, replaces=replaces)
    rings = collection.windows.rings.items()
    return (
        {step for name, ring in rings for step in told["windows"][name][-ring.window.size :]},
        [name for name, count in told["running"].items() if count],
    )


def make_room(collection: Collection, steps: Iterable[int], running: Iterable[str]) -> None:
    """Memory for these snapshots and running averages, to be loaded in place; what was held before is let go."""
    for name in collection.windows.rings:
        collection.windows.clear(name)
    while collection.prepared:
        collection.store.free(collection.prepared.popitem()[1])
    collection.prepared = {step: collection.store.empty(step) for step in sorted(steps)}
    for name, average in collection.running.items():
        average.release()
        if name in running:
            average.allocate()


def check_form(collection: Collection, meta: Mapping[str, Any]) -> None:
    """Raise where the saved tensors are cut otherwise than this averager's, as on another number of ranks."""
    form, own_form = meta.get("form", "whole"), collection.layout.form
    if form != own_form:
        raise LawaError(
            f"the saved state's tensors are {form}, this averager's {own_form}; make it as it was when it was saved "
            "(replicas=, DeepSpeed's stage and number of ranks)"
        )


def _checked_meta(collection: Collection, state: Mapping[str, Any], *, replaces: bool) -> dict[str, Any]:
    if not isinstance(state.get("meta"), str):
        raise LawaError(f"this is no averager's state: it has {sorted(map(str, state))[:5]}, and no 'meta'")
    try:
        meta = json.loads(state["meta"])
        for key in ("windows", "running", "rules", "skipped", "step", "pending", "last_replacement"):
            meta[key]
    except (ValueError, KeyError, TypeError) as bad:
        raise LawaError(f"the averager's saved state cannot be read ({bad!r}); it is damaged") from None
    for kind, own in (("windows", collection.windows.rings), ("running", collection.running)):
        if set(meta[kind]) != set(own):
            raise LawaError(
                f"the saved state has the averages {sorted(meta['windows'] | meta['running'])}, this averager "
                f"{sorted(collection.averages)}; make it with the same averages"
            )
    check_form(collection, meta)
    for name, average in collection.averages.items():
        if meta["rules"][name] != rule(average):
            warnings.warn(
                f"average {name!r} was saved as {meta['rules'][name]!r} and goes on as {rule(average)!r}", stacklevel=4
            )
    if meta["pending"] is not None and not replaces:
        raise LawaError(
            f"the saved state has a replacement pending since update {meta['pending']}, which an averager with "
            "mode='evaluate' never carries out; make it with mode='replace'"
        )
    return meta


def _tensors_of(saved: Mapping[str, Any], key: str, what: str) -> Mapping[str, Tensor]:
    if key not in saved:
        raise LawaError(
            f"the saved state lacks the {what}; before dcp.load, a fresh averager needs prepare_to_load(checkpoint)"
        )
    return saved[key]


def _take_over(collection: Collection, saved: Mapping[int, Mapping[str, Tensor]]) -> dict[int, Snapshot]:
    """Memory of our own with the saved snapshots, by update.

    What lies in our memory already (DCP loaded it in place, or the state is our own) is not copied; what we
    held besides serves for the others, and what is left over is let go.
    """
    present = {one.step: one.snapshot for one in collection.windows.snapshots()} | collection.prepared
    taken = {
        step: present[step] for step in present.keys() & saved.keys() if _is_own(collection, present[step], saved[step])
    }
    spare = [snapshot for step, snapshot in present.items() if step not in taken]
    for step, tensors in saved.items():
        if step not in taken:
            taken[step] = spare.pop() if spare else collection.store.empty(step)
            _copy(_named(collection, taken[step]), tensors)
    for snapshot in spare:
        collection.store.free(snapshot)
    return taken


def _key(step: int) -> str:
    return f"{step:08d}"


def _named(collection: Collection, snapshot: Snapshot) -> dict[str, Tensor]:
    collection.store.settle()
    return named(zip(collection.layout, snapshot, strict=True))


def _check(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], where: str) -> None:
    check_same(expected, given, where=where)
    for name, tensor in expected.items():
        if local(given[name]).shape != local(tensor).shape:
            raise LawaError(f"{where}: tensor {name!r} is sharded otherwise than the model; load it with dcp.load")


def _is_own(collection: Collection, snapshot: Snapshot, given: Mapping[str, Tensor]) -> bool:
    own = named(zip(collection.layout, snapshot, strict=True))
    return all(local(given[name]).data_ptr() == local(tensor).data_ptr() for name, tensor in own.items())


@torch.no_grad()
def _copy(into: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    for name, tensor in into.items():
        own = local(tensor)
        if own.data_ptr() != local(given[name]).data_ptr() or own.device != given[name].device:
            own.copy_(local(given[name]))
