"""What averaging will do, as plain values and as lines for people. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from lawa.averaging.cost import readable
from lawa.checkpoints.catalog import ITEMSIZE
from lawa.checkpoints.formats import Format
from lawa.checkpoints.select import Found
from lawa.checkpoints.sources import nbytes_of
from lawa.offline import files_kernel
from lawa.offline.plan import Plan
from lawa.offline.prepare import Asked, Prepared

_BY_TORCH = 1 << 20  # elements at once where the C loop does not serve
_NAMES = 5  # that a line lists


def preview(prepared: Prepared, asked: Asked, *, threads: int) -> dict[str, Any]:
    """Inputs in their order, outputs, bytes that are fetched, read and written, in scratch files and in memory.

    What only the tensors tell is None where they are not known before the work: inputs that are not fetched yet, or
    have to be loaded whole.
    """
    plan = prepared.plan
    inputs = [_input(one, prepared, number) for number, one in enumerate(prepared.found)]
    scratch = [one["scratch"] for one in inputs]
    return {
        "inputs": inputs,
        "outputs": [
            {"path": str(asked.output / mean.name), "inputs": list(mean.inputs), "coefficients": mean.coefficients}
            for mean in prepared.means
        ],
        "bytes_fetched": sum(one.nbytes for one in prepared.pinned.values() if one.cached is None),
        "bytes_scratch": None if None in scratch else sum(scratch),
        "bytes_read": plan.bytes_read if plan else None,
        "bytes_written": plan.bytes_written if plan else None,
        "memory": _memory(plan, threads) if plan else None,
        "threads": threads,
        "tensors": _tensors(plan) if plan else None,
        "duplicates": [[prepared.found[index].label for index in equal] for equal in prepared.equal],
        "notes": [*prepared.notes, *prepared.warnings],
    }


def preview_lines(told: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The same as (what, text)."""
    for one in told["inputs"]:
        yield "input", ", ".join(_input_words(one))
    for one in told["outputs"]:
        weights = "" if one["coefficients"] is None else f", coefficients {_some(one['coefficients'], '.4g')}"
        yield "output", f"{one['path']}: of {len(one['inputs'])}, {_span(told, one)}{weights}"
    if told["bytes_fetched"]:
        yield "fetches", readable(told["bytes_fetched"])
    if told["bytes_scratch"]:
        yield "scratch", f"up to {readable(told['bytes_scratch'])} beside the output, until it is done"
    if told["tensors"] is None:
        yield "tensors", "known once the inputs are on this machine and read: some are fetched or loaded whole first"
    else:
        yield "reads", readable(told["bytes_read"])
        yield "writes", f"{readable(told['bytes_written'])} in {told['tensors']['files']} files an output"
        yield "memory", f"{readable(told['memory'])} of blocks on {told['threads']} threads"
        yield from _tensor_lines(told["tensors"])
    for labels in told["duplicates"]:
        yield "SAME CONTENT", " and ".join(labels)
    for note in told["notes"]:
        yield "note", note


def _input(found: Found, prepared: Prepared, number: int) -> dict[str, Any]:
    pinned, form = prepared.pinned.get(found.repo) if found.repo else None, prepared.forms[number]
    catalog = prepared.plan.catalogs[number] if prepared.plan else None
    nbytes = catalog.nbytes if catalog else nbytes_of(found.path) if found.path else pinned.nbytes if pinned else 0
    return {
        "label": found.label,
        "step": found.step,
        "commit": pinned.commit if pinned else None,
        "format": form.name if form else None,
        "read": _way(form, planned=catalog is not None),
        "tensors": len(set(catalog.tensors.values())) if catalog else None,
        "dtypes": _dtypes(catalog.tensors.values()) if catalog else None,
        "bytes": nbytes,
        "scratch": _scratch(form, nbytes, planned=catalog is not None),
    }


def _way(form: Format | None, *, planned: bool) -> str:
    """How its tensors are read."""
    if form is None:
        return "fetched first"
    if form.name == "dcp":
        return "tensor by tensor"
    return "loaded whole" if form.whole else "in place" if planned else "unknown"


def _scratch(form: Format | None, nbytes: int, *, planned: bool) -> int | None:
    """The most bytes that it is put together in; None where that is not known, since it is not fetched."""
    if form is None:
        return None
    return nbytes if form.name == "dcp" or form.whole or (form.name == "neox" and not planned) else 0


def _dtypes(tensors: Any) -> dict[str, int]:
    """{dtype: elements}, tied ones once."""
    elements: Counter[str] = Counter()
    for stored in set(tensors):
        elements[stored.dtype] += stored.numel
    return dict(elements)


def _memory(plan: Plan, threads: int) -> int:
    """Of the blocks that the threads hold: one of each input, and of sum and output."""
    most = 0
    for placed in plan.tensors:
        if placed.row.averaged:
            dtypes = [stored.dtype for stored in placed.row.stored if stored]
            serves = files_kernel.serve(set(dtypes), placed.dtype, plan.accumulate)
            sources = [(0, 0, dtype) for dtype in dtypes]
            block = files_kernel.block_of(sources, len(plan.means)) if serves else _BY_TORCH
            bytes_each = sum(ITEMSIZE[dtype] for dtype in dtypes) + 2 * ITEMSIZE[plan.accumulate]
            most = max(most, min(block, placed.row.numel) * bytes_each)
    return threads * most


def _tensors(plan: Plan) -> dict[str, Any]:
    return {
        "averaged": sum(placed.row.averaged for placed in plan.tensors),
        "parameters": sum(placed.row.numel for placed in plan.tensors),
        "files": len(plan.files),
        "latest": [placed.row.name for placed in plan.tensors if not placed.row.averaged],
        "dropped": list(plan.matched.dropped),
        "tied": dict(plan.matched.tied),
    }


def _tensor_lines(tensors: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "averages", f"{tensors['averaged']:,} tensors, of {tensors['parameters']:,} elements in all"
    if tensors["latest"]:
        yield "latest", f"{_some(tensors['latest'])}: not averaged"
    if tensors["dropped"]:
        yield "leaves out", _some(tensors["dropped"])
    if tensors["tied"]:
        yield "tied", _some([f"{name} is {own}" for name, own in tensors["tied"].items()])


def _input_words(one: Mapping[str, Any]) -> Iterator[str]:
    yield one["label"]
    if one["step"] is not None:
        yield f"step {one['step']}"
    yield one["format"] or "not looked at"
    if one["dtypes"]:
        yield f"{one['tensors']:,} tensors of {' and '.join(one['dtypes'])}"
    yield readable(one["bytes"])
    if one["read"] != "in place":
        yield one["read"]


def _span(told: Mapping[str, Any], output: Mapping[str, Any]) -> str:
    first, last = (told["inputs"][output["inputs"][at]] for at in (0, -1))
    return f"{first['label']} … {last['label']}" if first is not last else first["label"]


def _some(values: Any, form: str = "") -> str:
    listed = ", ".join(format(value, form) for value in list(values)[:_NAMES])
    return f"{listed}, … ({len(values)} in all)" if len(values) > _NAMES else listed
