"""What `inspect` found, as lines for people: (what, text), in the order in which one asks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lawa.averaging.cost import readable

Line = tuple[str, str]


def lines(found: Mapping[str, Any]) -> Iterator[Line]:
    """Of a run, a checkpoint, a folder of them or a repo."""
    yield from {"run": _run, "checkpoint": _checkpoint, "trajectory": _trajectory, "repo": _repo}[found["kind"]](found)


def damages(found: Mapping[str, Any]) -> list[str]:
    """A sentence for every published directory of a run that is damaged."""
    if found["kind"] != "run":
        return []  # it would have raised
    published = [*found["checkpoints"], *(one for saved in found["saved_averages"].values() for one in saved)]
    return [one["damage"] for one in [*published, found["final"]] if one and one["damage"]]


def _run(found: Mapping[str, Any]) -> Iterator[Line]:
    yield "run", f"{found['name']} ({found['path']}), {readable(found['bytes'])} on disk"
    yield from _what_it_is(found)
    yield from _where_it_stands(found["standing"])
    yield from _its_windows(found["windows"])
    yield from _what_is_there(found)


def _what_it_is(found: Mapping[str, Any]) -> Iterator[Line]:
    model, data, machine = found["model"], found["data"], found["machine"]
    yield (
        "model",
        f"{model['architecture']}, {model['parameters']:,} parameters, {readable(4 * model['parameters'])} in fp32",
    )
    yield "text", f"{data['train']['tokens']:,} tokens; held out {data['validation']['tokens']:,} tokens"
    yield (
        "training",
        f"{found['updates']:,} updates of {found['tokens_per_update']:,} tokens, seed {found['seed']}, on "
        f"{found['device']}, {_count(found.get('processes', 1), 'process', 'processes')}",
    )
    mode = found["mode"]
    yield "averaging", f"{mode} with {found['replaced_with']}, {found['after_replace']}" if mode == "replace" else mode
    for name, average in found["averages"].items():
        yield "average", f"{name}: {average}"
    versions = ", ".join(f"{package} {version}" for package, version in found["versions"].items())
    yield "started", f"{found['started']} with {versions}"
    yield "commit", str(found["commit"] or "unknown")
    yield "machine", f"{machine['processor']}, {machine['cores']} cores, {machine['system']}"
    for resumed in found.get("resumed", []):
        changed = "".join(f"; {path}: {one['was']} → {one['is']}" for path, one in resumed.get("changed", {}).items())
        yield "resumed", f"after update {resumed['update']}{changed}"


def _where_it_stands(standing: Mapping[str, Any]) -> Iterator[Line]:
    train, evaluation, replacement = (standing[kind] for kind in ("train", "evaluation", "replacement"))
    yield "stands", f"update {standing['update']:,} of {standing['updates']:,}, {standing['tokens']:,} tokens"
    if train:
        yield "training loss", f"{_loss(train['loss'])} at update {train['update']:,}"
    if evaluation:
        losses = ", ".join(f"{name} {_loss(loss)}" for name, loss in evaluation["losses"].items())
        yield "validation", f"{losses} at update {evaluation['update']:,}"
    if replacement:
        applied = "by" if replacement["applied"] else "skipped: not finite,"
        loss = "" if replacement.get("loss") is None else f", loss {_loss(replacement['loss'])}"
        yield (
            "replacement",
            f"{applied} {replacement['name']} of {_count(replacement['snapshots'], 'snapshot')}{loss} at update "
            f"{replacement['update']:,}",
        )
    yield "now", "another process trains in it" if standing["held"] else standing["way_on"]


def _its_windows(windows: Mapping[str, Any]) -> Iterator[Line]:
    if windows["update"] is not None:
        at = f"at update {windows['update']:,}"
        for name, steps in windows["holds"].items():
            held = ", ".join(map(str, steps)) or "nothing"
            yield "window", f"{name} holds {len(steps)} of {windows['sizes'].get(name, '?')} {at}: {held}"
        for name, count in windows["readings"].items():
            yield "window", f"{name} has had {_count(count, 'reading')} {at}"
    if windows["sizes"]:
        where = "read from the checkpoints" if windows["placement"] == "disk" else f"on the {windows['placement']}"
        split = "" if windows["split_over"] == 1 else f", split over {windows['split_over']} processes"
        yield (
            "its cost",
            f"{windows['held_snapshots']} of at most {_count(windows['snapshots_at_most'], 'snapshot')} of "
            f"{readable(windows['snapshot_bytes'])} {where}; all averages at most "
            f"{readable(windows['memory_at_most'])} of memory{split}",
        )
    if windows["saved_bytes"]:
        yield "to go on", f"{readable(windows['saved_bytes'])} in the latest checkpoint: optimizer and averages"


def _what_is_there(found: Mapping[str, Any]) -> Iterator[Line]:
    for one in found["checkpoints"]:
        yield "checkpoint", f"{_published(one)}{', training can go on from it' if one['training'] else ''}"
    for name, saved in found["saved_averages"].items():
        for one in saved:
            yield "saved average", f"{name}, {_published(one)}"
    if found["final"]:
        yield "final", _published(found["final"])
    for path in found["unfinished"]:
        yield "unfinished", f"{path}: being written, or left by a process that was stopped; a resume removes it"


def _published(one: Mapping[str, Any]) -> str:
    how = f"DAMAGED: {one['damage']}" if one["damage"] else f"whole ({one['manifest']})"
    return f"update {one['update']:,}, {readable(one['bytes'])}, {how}"


def _checkpoint(found: Mapping[str, Any]) -> Iterator[Line]:
    yield "checkpoint", f"{found['path']}, {readable(found['bytes'])} on disk"
    yield "format", f"{found['format']}, {found['model'] or 'unknown architecture'}"
    yield _tensors(found)
    yield (
        "manifest",
        {
            "none": "none: nothing to compare the files with",
            "sizes": "every file is there with its size; --verify compares digests",
            "digests": "every file has its digest",
        }[found["manifest"]],
    )
    if training := found["training"]:
        yield "training", f"can go on after update {training['update']:,} ({readable(training['bytes'])})"
        for name, steps in training["windows"].items():
            yield "window", f"{name} holds {', '.join(map(str, steps)) or 'nothing'}"
        if training["pending"] is not None:
            yield "pending", f"the replacement of update {training['pending']:,}, carried out first"
    if average := found["average"]:
        loss = average.get("validation_loss")
        at = "" if average["update"] is None else f", at update {average['update']:,}"
        yield "average", f"{average['average'] or 'of'}: {average['kind']}{at}"
        yield "made of", f"{_made_of(average)}, summed in {average['accumulate']}"
        if loss is not None:
            yield "validation", _loss(loss)
    if found["export"]:
        yield "note", found["export"]


def _trajectory(found: Mapping[str, Any]) -> Iterator[Line]:
    checkpoints, latest = found["checkpoints"], found["latest"]
    yield "trajectory", f"{found['path']}, {_count(len(checkpoints), 'checkpoint')}"
    yield "steps", _steps([one["step"] for one in checkpoints])
    yield "bytes", f"{readable(sum(one['bytes'] for one in checkpoints))} on disk"
    yield "latest", f"{checkpoints[-1]['path']}, {latest['format']}"
    yield _tensors(latest)


def _repo(found: Mapping[str, Any]) -> Iterator[Line]:
    yield "repo", f"{found['repo']}@{found['revision']}, commit {found['commit']}"
    yield "fetched", "it is in the cache" if found["cached"] else f"not yet: {readable(found['bytes'])} would be"
    yield _tensors(found)
    if found["steps"]:
        yield "revisions", f"of {_steps(found['steps'])}"


def _tensors(found: Mapping[str, Any]) -> Line:
    if found["tensors"] is None:
        return "tensors", "known once it is loaded whole"
    dtypes = ", ".join(f"{count:,} {dtype}" for dtype, count in found["dtypes"].items())
    return "tensors", f"{found['tensors']:,} with {found['parameters']:,} parameters: {dtypes}"


def _steps(steps: Sequence[int]) -> str:
    some = [*steps[:5], "…", *steps[-2:]] if len(steps) > 8 else steps
    return f"{_count(len(steps), 'step')}: {', '.join(map(str, some))}"


def _made_of(average: Mapping[str, Any]) -> str:
    """Of an average on disk its checkpoints, of one of the loop its snapshots or readings."""
    if "inputs" in average:
        labels = [one["label"] for one in average["inputs"]]
        return ", ".join(labels[:3]) + (f", … ({len(labels)} in all)" if labels[3:] else "")
    snapshots = average["snapshots"]
    if isinstance(snapshots, int):
        return _count(snapshots, "reading")
    return f"the snapshots of updates {', '.join(map(str, snapshots))}"


def _loss(value: float | None) -> str:
    return "nan" if value is None else f"{value:.4f}"


def _count(number: int, one: str, more: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else more or f'{one}s'}"
