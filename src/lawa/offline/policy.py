"""Which tensors of several checkpoints are one, and what happens to each: averaged, the latest one's, or left out.

Tensors are matched by name, and nothing is guessed: one that is missing, more, or of another shape is an error that
names it, the checkpoint, and the option that decides. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from lawa.checkpoints.catalog import AVERAGED, Catalog, Stored
from lawa.errors import LawaError, UsageError

# What some checkpoints store and no model needs: transformers makes it anew.
_NO_WEIGHTS = re.compile(
    r"(^|\.)(attention|attn)\.(bias|masked_bias)$|(^|\.)rotary_emb\.inv_freq$|(^|\.)embeddings\.position_ids$"
)


@dataclass(frozen=True, kw_only=True)
class Policy:
    """
    ignore   names (with * and ?) that are left out
    latest   names that are not averaged: an average has its latest checkpoint's tensor
    buffers  "drop" (default) or "latest": causal masks, inverse frequencies and position ids
    ties     "keep" (default): tensors tied in every checkpoint are written once; "untie": each is written
    """

    ignore: tuple[str, ...] = ()
    latest: tuple[str, ...] = ()
    buffers: str = "drop"
    ties: str = "keep"

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("buffers", self.buffers, ("drop", "latest")),
            ("ties", self.ties, ("keep", "untie")),
        ):
            if value not in choices:
                raise UsageError(f"{name}={value!r} must be one of {', '.join(choices)}")


@dataclass(frozen=True)
class Row:
    """One tensor of all checkpoints.

    stored    where it lies, by checkpoint; None where a checkpoint has none (never for an averaged one)
    averaged  or else the latest one's value
    """

    name: str
    stored: tuple[Stored | None, ...]
    averaged: bool

    @property
    def newest(self) -> Stored:
        """Its place in the latest checkpoint, which decides its shape."""
        stored = self.stored[-1]
        assert stored is not None  # its name comes from there
        return stored

    @property
    def numel(self) -> int:
        return self.newest.numel


@dataclass(frozen=True)
class Matched:
    """
    rows     in the latest checkpoint's order
    tied     {other name: name of the row that has its values}
    dropped  names that are in some checkpoint and in no row
    """

    rows: list[Row]
    tied: dict[str, str]
    dropped: list[str]


def match(catalogs: Sequence[Catalog], policy: Policy) -> Matched:
    """Match the tensors of `catalogs`, oldest first. Raises LawaError for what the policy does not decide."""
    _check_patterns(catalogs, policy)
    kept = [{name: at for name, at in one.tensors.items() if not _left_out(name, at, policy)} for one in catalogs]
    tied = _ties(catalogs, kept, policy)
    others: dict[str, list[str]] = {}
    for name, first in tied.items():
        others.setdefault(first, []).append(name)
    rows = []
    for name, newest in kept[-1].items():
        if name in tied:
            continue
        names = (name, *others.get(name, ()))  # a checkpoint may store it under any one of them
        stored = tuple(next((tensors[own] for own in names if own in tensors), None) for tensors in kept)
        averaged = newest.dtype in AVERAGED and not _is_decided(name, newest, policy)
        if not _is_decided(name, newest, policy):
            _check_same(name, stored, catalogs, averaged=averaged)
        rows.append(Row(name, stored, averaged))
    _check_extra(catalogs, kept, policy)
    dropped = sorted({name for one in catalogs for name in one.tensors} - {row.name for row in rows} - tied.keys())
    if not any(row.averaged for row in rows):
        raise LawaError(f"{catalogs[-1].label} has no tensor to average: {len(rows)} are kept, {len(dropped)} left out")
    return Matched(rows, tied, dropped)


def _check_patterns(catalogs: Sequence[Catalog], policy: Policy) -> None:
    for option, patterns in (("ignore", policy.ignore), ("latest", policy.latest)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for one in catalogs for name in one.tensors):
                raise UsageError(f"{option}={pattern!r} is the name of no tensor; `lawa inspect --tensors` lists them")


def _check_extra(catalogs: Sequence[Catalog], kept: Sequence[Mapping[str, Stored]], policy: Policy) -> None:
    for one, tensors in zip(catalogs, kept, strict=True):
        known = {at for name, at in tensors.items() if name in kept[-1]}  # its other names may be stored no more
        for name, at in tensors.items():
            if name not in kept[-1] and at not in known and _is_float(at) and not _is_decided(name, at, policy):
                raise LawaError(
                    f"{one.label} has a tensor {name!r} that {catalogs[-1].label} lacks; is it the same model? "
                    f"(--ignore {name!r} leaves it out)"
                )


def _check_same(name: str, stored: Iterable[Stored | None], catalogs: Sequence[Catalog], *, averaged: bool) -> None:
    """Of what is not averaged (integers), a checkpoint may have none, or another shape; never floating values."""
    newest = catalogs[-1].tensors[name]
    if _is_float(newest) and not averaged:
        raise LawaError(
            f"tensor {name!r} of {catalogs[-1].label} is {newest.dtype}, which is not averaged; "
            f"--latest {name!r} takes the latest one's"
        )
    for one, at in zip(catalogs, stored, strict=True):
        if not averaged and (at is None or not _is_float(at)):
            continue
        if at is None:
            raise LawaError(
                f"{one.label} lacks the tensor {name!r} of {catalogs[-1].label}; is it the same model? "
                f"(--ignore {name!r} leaves it out, --latest {name!r} takes the latest one's)"
            )
        if averaged and at.shape != newest.shape:
            raise LawaError(
                f"tensor {name!r} has shape {at.shape} in {one.label} and {newest.shape} in {catalogs[-1].label}; is "
                f"it the same model? (--latest {name!r} takes the latest one's)"
            )
        if not averaged or at.dtype not in AVERAGED:
            raise LawaError(
                f"tensor {name!r} is {at.dtype} in {one.label} and {newest.dtype} in {catalogs[-1].label}; "
                f"--latest {name!r} takes the latest one's"
            )


def _ties(catalogs: Sequence[Catalog], kept: Sequence[Mapping[str, Stored]], policy: Policy) -> dict[str, str]:
    """{name: the name before it in the latest checkpoint that lies at the same place}, where that holds in all."""
    if policy.ties == "untie":
        return {}
    tied: dict[str, str] = {}
    first: dict[Stored, str] = {}
    for name, at in kept[-1].items():
        if at.numel == 0 or at not in first:
            first.setdefault(at, name)
            continue
        for one, tensors in zip(catalogs, kept, strict=True):
            # A checkpoint that has only one of the names stores them tied, too.
            if name in tensors and first[at] in tensors and tensors[name] != tensors[first[at]]:
                raise LawaError(
                    f"{name!r} and {first[at]!r} are one tensor in {catalogs[-1].label} and two in {one.label}; "
                    "--ties untie averages and writes each"
                )
        if _any(name, policy.latest) != _any(first[at], policy.latest):
            raise LawaError(
                f"{name!r} and {first[at]!r} are one tensor in {catalogs[-1].label}, and --latest names one of them; "
                "name both, or say --ties untie"
            )
        tied[name] = first[at]
    return tied


def _left_out(name: str, stored: Stored, policy: Policy) -> bool:
    return _any(name, policy.ignore) or (policy.buffers == "drop" and _no_weight(name, stored))


def _is_decided(name: str, stored: Stored, policy: Policy) -> bool:
    """Whether it has the latest one's value, whatever the others have."""
    return _any(name, policy.latest) or _no_weight(name, stored)


def _is_float(stored: Stored) -> bool:
    return "float" in stored.dtype


def _no_weight(name: str, stored: Stored) -> bool:
    """GPT-NeoX's and GPT-2's causal masks are called as a bias is: they have four dimensions, or none."""
    return _NO_WEIGHTS.search(name) is not None and (not name.endswith(".bias") or len(stored.shape) == 4)


def _any(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
