"""What is known of trajectories, as lines for people: (what, text). No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Line = tuple[str, str]

_SHOWN = 300  # characters of a sequence's text
_IDS = 24
_MANY = 12  # of steps and ranges of them


def lines(found: Mapping[str, Any]) -> Iterator[Line]:
    """Of a trajectory, the list of them, or a batch."""
    yield from {"trajectories": _listed, "named trajectory": _trajectory, "batch": _batch}[found["kind"]](found)


def _listed(found: Mapping[str, Any]) -> Iterator[Line]:
    for one in found["trajectories"]:
        told = [
            f"{_checkpoints(one['checkpoints'])}, {one['updates']:,} updates",
            f"{billions(one['tokens'])} tokens" if one["tokens"] else "",
            f"data {one['data']}" if one["data"] else "no data",
            f"optimizer states {one['optimizer']}" if one["optimizer"] else "",
        ]
        yield one["family"], f"{one['name']}: {', '.join(filter(None, told))}"


def _trajectory(found: Mapping[str, Any]) -> Iterator[Line]:
    yield "trajectory", f"{found['name']} ({found['repo']})"
    main = "" if found["main"] is None else f"; main is of update {found['main']:,}"
    yield "revisions", f"{_checkpoints(found['checkpoints'])}, {found['revisions']}{main}"
    yield "steps", _few(found["steps"])
    if found["weights"]:
        yield "weights", found["weights"]
    yield "training", _size(found)
    yield from _rule(found)
    yield "data", _data(found["data"])
    yield "optimizer", _optimizer(found["optimizer"])
    yield "tokenizer", f"{found['tokenizer'] or 'not known'}; {found['vocab_size'] or 'unknown'} rows of the embedding"
    for bad in found["bad"]:
        yield "bad", f"{_few(bad['steps'])}: {bad['why']}"
    for group in found["same"]:
        yield "same weights", ", ".join(group)
    for note in found["notes"]:
        yield "note", note
    if "step" in found:
        yield from _step(found["step"])


def _size(found: Mapping[str, Any]) -> str:
    updates = f"{found['updates']:,} updates"
    if not found["tokens"]:
        return f"{updates}; their size is not known"
    return (
        f"{updates} of {found['batch']:,} sequences of {found['context']:,} tokens: {billions(found['tokens'])} tokens"
    )


def _rule(found: Mapping[str, Any]) -> Iterator[Line]:
    training = found["training"]
    if not training:
        yield "learning rate", "not known"
        return
    settings = {name: value for name, value in training.items() if name not in ("updates", "batch", "lr", "schedule")}
    yield "learning rate", f"{training.get('schedule', 'cosine')} from {training['lr']:g}"
    for at in found["lr"]:
        yield "learning rate", f"{at['lr']:.4g} at update {at['update']:,}"
    yield "settings", ", ".join(f"{name} {value}" for name, value in settings.items())


def _data(data: Mapping[str, Any] | None) -> str:
    if data is None:
        return "its batches cannot be had"
    files = data.get("files") or data.get("tokens", {}).get("files") or ()
    where = data.get("repo") or data.get("source") or data.get("store") or "on disk"
    return f"{data['kind']}: {where}" + (f", {len(files)} files" if files else "")


def _optimizer(states: Mapping[str, Any] | None) -> str:
    if states is None:
        return "no states are released"
    steps = "which steps is not known" if states["steps"] is None else _few(states["steps"])
    return f"{states['format']}: {states['repo'] or states['url']}, {steps}"


def _step(at: Mapping[str, Any]) -> Iterator[Line]:
    revision = at["revision"] or "no checkpoint"
    yield "at update", f"{at['update']:,}: {revision}" + (f", which is BAD: {at['bad']}" if at["bad"] else "")
    if at["tokens"] is not None:
        yield "at update", f"{billions(at['tokens'])} tokens ({at['tokens']:,})"
    for name, of in (("lr", "this update's"), ("next_lr", "the next one's")):
        if at[name] is not None:
            yield "at update", f"{of} learning rate {at[name]:.6g}"
    if at["next_batch"] is not None:
        yield "at update", f"next is batch {at['next_batch']:,}, counted from 0: that of update {at['update'] + 1:,}"


def _batch(found: Mapping[str, Any]) -> Iterator[Line]:
    rows, columns = found["shape"]
    yield "batch", f"{found['batch']:,} of {found['trajectory']}, counted from 0: that of update {found['update']:,}"
    yield "shape", f"{rows:,} sequences of {columns - 1:,} tokens, and one more"
    yield "digest", f"sha256 {found['digest']}"
    vocabulary = f"the vocabulary has {found['vocab_size']:,}" if found["vocab_size"] else "the vocabulary is not known"
    yield "ids", f"{found['lowest']:,} … {found['highest']:,}; {vocabulary}"
    for name, value in found["data"].items():
        yield "data", f"{name}: {_short(str(value))}"
    if found["tokenizer"]["missing"]:
        yield "text", f"not shown: {found['tokenizer']['missing']}"
    for row in found["rows"]:
        text = row["text"] if row["text"] is not None else " ".join(map(str, row["ids"][:_IDS])) + " …"
        yield f"sequence {row['row']}", _short(text)


def billions(tokens: int) -> str:
    """
    >>> billions(299_892_736_000), billions(2_097_152)
    ('299.9 B', '2,097,152')
    """
    return f"{tokens / 1e9:,.1f} B" if tokens >= 1e8 else f"{tokens:,}"


def _checkpoints(number: int) -> str:
    return f"{number:,} checkpoint{'' if number == 1 else 's'}"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…"


def _few(steps: list[str]) -> str:
    if len(steps) <= _MANY:
        return ", ".join(steps) or "none"
    return ", ".join([*steps[:_MANY], "…", *steps[-2:]])
