"""Token ids in JSONL, a line one sequence: {"token_ids": [id, …], …}, as LLM360 released Amber's and K2's text.

A process of its own reads a stretch of a file, so that several are read at once:

    python -P -m lawa.data.token_lines FILE START STOP WIDTH VOCAB_SIZE     ids on stdout, what is wrong on stderr

Most of the time is spent on making numbers from digits. In lines as json.dumps writes them NumPy makes them, more than
twice as fast as the json module, which reads all others and all that are wrong.
"""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lawa.errors import LawaError

_KEY = "token_ids"
_HEAD = f'{{"{_KEY}": ['.encode()
_PAIRS = json.JSONDecoder(object_pairs_hook=list)


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """The sequences whose lines begin within some bytes of a file.

    ids    [lines, width], of the dtype that `dtype` gives; up to the first line that is wrong
    wrong  what is wrong with the line after these, if anything is: "is no JSON", say
    """

    ids: NDArray[np.unsignedinteger]
    wrong: str | None = None


def dtype(vocab_size: int) -> str:
    """The dtype that holds the ids of a vocabulary: little-endian uint16 where they fit, else uint32."""
    return "<u2" if vocab_size <= 1 << 16 else "<u4"


def read(file: Path, start: int, stop: int, *, width: int, vocab_size: int) -> Stretch:
    """The sequences of the lines that begin at bytes `start` … `stop` − 1; each line must hold `width` ids."""
    ids = bytearray()
    wrong = None
    with file.open("rb") as opened, warnings.catch_warnings():
        if start:  # the line that begins before is another stretch's
            opened.seek(start - 1)
            opened.readline()
        warnings.simplefilter("error", DeprecationWarning)  # NumPy's way to say that a text is not numbers alone
        while opened.tell() < stop and (line := opened.readline()):
            row = _plain(line, width, vocab_size)
            try:
                row = _checked(line, width, vocab_size) if row is None else row
            except ValueError as bad:
                wrong = str(bad)
                break
            ids += row.astype(dtype(vocab_size)).tobytes()
    return Stretch(ids=np.frombuffer(ids, dtype(vocab_size)).reshape(-1, width), wrong=wrong)


def read_apart(file: Path, start: int, stop: int, *, width: int, vocab_size: int) -> Stretch:
    """The same as `read`, by a process of its own. Raises LawaError where that ends before its work does."""
    numbers = map(str, (start, stop, width, vocab_size))
    command = [sys.executable, "-P", "-m", "lawa.data.token_lines", str(file), *numbers]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise LawaError(f"the process that read {file} ended with {done.returncode} ({said}); start it again")
    ids = np.frombuffer(done.stdout, dtype(vocab_size)).reshape(-1, width)
    return Stretch(ids=ids, wrong=json.loads(done.stderr.splitlines()[-1]))


def _plain(line: bytes, width: int, vocab_size: int) -> NDArray[np.int64] | None:
    """The ids of a line that is right and written as json.dumps writes it; None of any other."""
    end = line.find(b"]")
    text = line[len(_HEAD) : end]
    commas = text.count(b",")
    if commas != width - 1 or not line.startswith(_HEAD):
        return None
    try:
        fields: Any = _PAIRS.decode(f'{{"{_KEY}": null{line[end + 1 :].decode()}')
        ids = np.fromstring(text, dtype=np.int64, sep=",")
    except (ValueError, DeprecationWarning):  # numbers that end before the text does
        return None
    if len(ids) != width or ids.max() >= vocab_size:
        return None
    # NumPy takes signs and leading zeros, JSON does not: nothing but commas, blanks and needed digits may be there.
    if len(text) - commas - text.count(b" ") != _digits(ids, vocab_size):
        return None
    return ids if [name for name, _ in fields].count(_KEY) == 1 else None  # of several, the last one would count


def _digits(ids: NDArray[np.int64], vocab_size: int) -> int:
    """How many digits these ids have in all."""
    digits, power = len(ids), 10
    while power < vocab_size:
        digits += int(np.count_nonzero(ids >= power))
        power *= 10
    return digits


def _checked(line: bytes, width: int, vocab_size: int) -> NDArray[np.int64]:
    """The ids of any line. Raises ValueError that says what is wrong with it."""
    try:
        row = json.loads(line)
    except ValueError:
        raise ValueError("is no JSON" if line.endswith(b"\n") else "is cut off") from None
    ids = row.get(_KEY) if isinstance(row, dict) else None
    if not isinstance(ids, list):
        raise ValueError(f'has no list "{_KEY}"')
    if len(ids) != width:
        raise ValueError(f"has {len(ids)} ids, and not context + 1 = {width}")
    for one in ids:
        if type(one) is not int or not 0 <= one < vocab_size:
            raise ValueError(f"holds {json.dumps(one)[:40]}, and ids are whole numbers from 0 to {vocab_size - 1}")
    return np.array(ids, dtype=np.int64)


def main() -> None:
    start, stop, width, vocab_size = map(int, sys.argv[2:])
    found = read(Path(sys.argv[1]), start, stop, width=width, vocab_size=vocab_size)
    sys.stdout.buffer.write(found.ids.tobytes())
    sys.stderr.write(json.dumps(found.wrong))


if __name__ == "__main__":
    main()
