"""How every benchmark here measures, and how it says what it found.

A benchmark answers a question with a ratio: the seconds of what is measured over those of its limit, both
from the same run. The contenders take turns, one call sequence a round; a round's ratio is taken within the
round, so a machine that is busy for a while slows both sides of it. Reported are the median over the rounds
and the extremes. Nothing here fails because something is slow.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from lawa.records import provenance, write_json

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 9
QUICK_ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The median of some values, their extremes, and the values themselves in the order they were taken."""

    median: float
    least: float
    most: float
    values: list[float]

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median=statistics.median(values), least=min(values), most=max(values), values=list(values))


@dataclass(frozen=True, kw_only=True)
class Record:
    """One question and its answer.

    name      benchmark/what, unique
    question  what the ratio says, in a line
    ratio     over the rounds; its limit is 1 where the ratio is to a limit
    target    what the ratio should not exceed; None for a peer or a finding
    n         rounds
    unit      "×" for a ratio, "%" for a share (whose values are fractions)
    parts     what the ratio was made of, by name: seconds, unless the name says otherwise
    note      what a reader needs beside the ratio
    """

    name: str
    question: str
    ratio: Spread
    target: float | None
    n: int
    unit: str = "×"
    parts: dict[str, Spread] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Check:
    """Something that is true or false, whatever the machine's speed. A benchmark whose check fails exits with 1."""

    name: str
    claim: str
    held: bool
    detail: str = ""


Found = Record | Check


def alternate(contenders: Mapping[str, Callable[[], T]], *, rounds: int, warmup: int = 2) -> dict[str, list[T]]:
    """What each contender returns, one value a round; `warmup` rounds before are thrown away.

    Each round begins with another contender, so that nobody always has the same neighbour's cache.
    """
    names = list(contenders)
    returned: dict[str, list[T]] = {name: [] for name in names}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for number in range(-warmup, rounds):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                value = contenders[name]()
                if number >= 0:
                    returned[name].append(value)
    finally:
        if collecting:
            gc.enable()
    return returned


def interleave(
    contenders: Mapping[str, Callable[[], object]],
    *,
    rounds: int = ROUNDS,
    warmup: int = 2,
    least: float = 0.02,
    synchronize: Callable[[], object] | None = None,
) -> dict[str, list[float]]:
    """Seconds a call of each contender, one value a round.

    least        seconds that a contender's turn lasts at least: short ones are called several times in it
    synchronize  waits for a device; called before and after every turn, the second time on its clock
    """
    wait = synchronize or (lambda: None)
    turns = {name: _Turn(call, least, wait) for name, call in contenders.items()}
    return alternate(turns, rounds=rounds, warmup=warmup)


# Seconds before a turn: torch's threads go on spinning for some milliseconds after their last operation, on the
# cores that the next contender needs.
_SETTLE = 0.02


@dataclass
class _Turn:
    """Calls its contender as often as the last turn's speed asks for; seconds a call."""

    call: Callable[[], object]
    least: float
    wait: Callable[[], object]
    calls: int = 1

    def __call__(self) -> float:
        self.wait()
        time.sleep(_SETTLE)
        began = time.perf_counter()
        for _ in range(self.calls):
            self.call()
        self.wait()
        seconds = (time.perf_counter() - began) / self.calls
        self.calls = max(1, math.ceil(self.least / max(seconds, 1e-9)))
        return seconds


def over(measured: Sequence[float], limit: Sequence[float], *, times: float = 1.0) -> Spread:
    """measured / (times · limit), round by round."""
    return Spread.of([one / (times * other) for one, other in zip(measured, limit, strict=True)])


def table(found: Sequence[Found]) -> str:
    """A markdown table of records, and a list of checks below it."""
    records = [one for one in found if isinstance(one, Record)]
    checks = [one for one in found if isinstance(one, Check)]
    lines = []
    if records:
        lines += ["| question | ratio (least – most) | target | n |", "|---|---|---|---|"]
        lines += [row(record) for record in records]
    if records and checks:
        lines.append("")
    for check in checks:
        detail = f" ({check.detail})" if check.detail else ""
        lines.append(f"- {'holds' if check.held else '**does not hold**'}: {check.claim}{detail}")
    return "\n".join(lines)


def row(record: Record) -> str:
    """| question, note | median (least – most) | target | n |"""
    question = f"{record.question}; {record.note}" if record.note else record.question
    ratio, unit = record.ratio, record.unit
    shown = f"{number(ratio.median, unit)} ({number(ratio.least, unit)} – {number(ratio.most, unit)})"
    target = "" if record.target is None else f"≤ {number(record.target, unit)}"
    if record.target is not None and ratio.median > record.target:
        target += ", missed"
    return f"| {question} | {shown} | {target} | {record.n} |"


def number(value: float, unit: str) -> str:
    """Three significant digits, without an exponent.

    >>> number(1.0379, "×"), number(27.31, "×"), number(0.00482, "%")
    ('1.04', '27.3', '0.482 %')
    """
    scaled = value * 100 if unit == "%" else value
    digits = 2 if scaled == 0 else max(0, 2 - math.floor(math.log10(abs(scaled))))
    return f"{scaled:.{min(digits, 4)}f}" + (" %" if unit == "%" else "")


def milliseconds(spread: Spread) -> str:
    return f"{number(spread.median * 1e3, '×')} ms"


def describe(name: str, found: Sequence[Found], **more: Any) -> dict[str, Any]:
    """Everything a benchmark found, with what is needed to reproduce it."""
    return {
        "benchmark": name,
        **more,
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "records": [asdict(one) for one in found if isinstance(one, Record)],
        "checks": [asdict(one) for one in found if isinstance(one, Check)],
        **provenance(("transformers", "tokenizers")),
    }


def read_found(described: Mapping[str, Any]) -> list[Found]:
    """The records and checks of what `describe` made."""
    found: list[Found] = []
    for record in described["records"]:
        parts = {name: Spread(**part) for name, part in record["parts"].items()}
        found.append(Record(**{**record, "ratio": Spread(**record["ratio"]), "parts": parts}))
    return found + [Check(**check) for check in described["checks"]]


def machine(described: Mapping[str, Any]) -> str:
    """One line: where the numbers are from."""
    versions, where = described["versions"], described["machine"]
    load = f", load {described['load'][0]:.1f}" if described.get("load") else ""
    return (
        f"{described.get('device') or where['processor']}, {where['cores']} cores, {described.get('threads', '?')} "
        f"threads{load}; {where['system']}; Python {versions['python']}, torch {versions['torch']}, "
        f"transformers {versions['transformers']}; commit {described['commit'] or 'unknown'}"
    )


def run(name: str, description: str, measure: Callable[[bool], Sequence[Found]]) -> None:
    """The command line of a CPU benchmark: `measure` is given whether it should be quick."""
    import torch

    parser = argparse.ArgumentParser(description=description.strip().splitlines()[0], allow_abbrev=False)
    parser.add_argument("--output", type=Path, metavar="FILE", help="write everything as JSON")
    parser.add_argument("--threads", type=int, metavar="N", help="torch's threads (default: its own choice)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run? The numbers mean nothing")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    began = time.perf_counter()
    found = measure(given.quick)
    if given.quick:
        found = [replace(one, target=None) if isinstance(one, Record) else one for one in found]
    spent = round(time.perf_counter() - began, 1)
    described = describe(name, found, quick=given.quick, threads=torch.get_num_threads(), seconds=spent)
    finish(described, given.output)


def finish(described: dict[str, Any], output: Path | None) -> None:
    """Print the table, write the file, and exit with 1 if a check did not hold."""
    json.dumps(described, allow_nan=False)  # a ratio that is no number is ours to find, not the reader's
    found = read_found(described)
    print(f"{table(found)}\n\n{machine(described)}")
    if output is not None:
        write_json(output, described)
    sys.exit(any(isinstance(one, Check) and not one.held for one in found))
