"""Bytes of files on the hub into a local file, in parts: several at once, gone on with after a kill. No torch.

huggingface_hub (2.4) begins a file anew after a kill: its temporary names are of one process. A shard of weights is
10 GB, and of a data file of 30 GB a branch needs 8, so these go part by part here, through its session, addresses and
headers. Beside PARTIAL lies PARTIAL.journal: the first line has the request, each other one the number of a part that
is on disk. Another request begins anew.
"""

from __future__ import annotations

import errno
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lawa.checkpoints.hub_client import Patience, Repo, Unreachable, client, sentences
from lawa.errors import LawaError

PART = 1 << 24  # bytes
_AT_ONCE = 4  # parts
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Part:
    """Bytes start … stop of the file `name` of a repo, for the place `at` of a local file."""

    name: str
    start: int
    stop: int
    at: int


class WrongBytes(LawaError):
    """The hub sends another file than it tells of."""


def parts(spans: Sequence[tuple[str, int, int]]) -> list[Part]:
    """The spans (name, start, stop), one behind the other in a local file, in parts of at most 16 MiB."""
    found: list[Part] = []
    at = 0
    for name, start, stop in spans:
        found += [Part(name, first, min(first + PART, stop), at + first - start) for first in range(start, stop, PART)]
        at += stop - start
    return found


def fill(
    partial: Path,
    wanted: Sequence[Part],
    *,
    request: Mapping[str, Any],
    read: Callable[[Part], Iterator[bytes]],
    arrived: Callable[[int], None] = lambda nbytes: None,
) -> None:
    """Write every part to its place in `partial`; those that an earlier call with this request wrote stay.

    request  plain values that say which bytes these are, written down
    read     the bytes of a part, in blocks
    arrived  called with bytes that need not be waited for any more, from several threads

    Raises LawaError for a full disk; what was written is gone on with by the next call.
    """
    size = max((part.at + part.stop - part.start for part in wanted), default=0)
    there = written(partial, request, size)
    arrived(sum(wanted[number].stop - wanted[number].start for number in there))
    lock = threading.Lock()
    try:
        if not there:
            journal_of(partial).write_text(json.dumps(request) + "\n", encoding="utf-8")
        with partial.open("r+b" if there else "wb") as file, journal_of(partial).open("ab", buffering=0) as journal:
            file.truncate(size)

            def fetch(number: int) -> None:
                at = wanted[number].at
                for block in read(wanted[number]):
                    _write(file.fileno(), block, at)
                    at += len(block)
                    arrived(len(block))
                os.fdatasync(file.fileno())
                with lock:
                    journal.write(b"%d\n" % number)

            with ThreadPoolExecutor(_AT_ONCE) as pool:
                for _ in pool.map(fetch, [number for number in range(len(wanted)) if number not in there]):
                    pass
    except OSError as failed:
        if failed.errno not in _FULL:
            raise LawaError(
                f"{partial} cannot be written ({failed.strerror}); see to its disk, then try again"
            ) from None
        raise LawaError(
            f"{partial.parent} has no room ({failed.strerror}) for a file of {size / 1e9:.1f} GB; what was fetched is "
            "kept: make room, then try again"
        ) from None


def read(repo: Repo, commit: str, part: Part, size: int) -> Iterator[bytes]:
    """The bytes of a part from the hub, in blocks; a connection that breaks off is gone on with where it did.

    size  bytes of the whole file, as the hub tells elsewhere

    Raises LawaError for what the hub refuses, WrongBytes for a file of another size, and Unreachable where patience
    ends.
    """
    at, patience = part.start, Patience()
    while at < part.stop:
        try:
            with sentences(repo):
                for block in _asked(repo, commit, part, at, size):
                    at += len(block)
                    patience.renew()
                    yield block
            if at < part.stop:
                raise Unreachable(f"{part.name} breaks off at byte {at} of {part.stop}", passing=True)
        except Unreachable as away:
            patience.wait(away)


def told(partial: Path) -> dict[str, Any] | None:
    """The request that a `partial` was begun for; None where none was."""
    try:
        found = json.loads(journal_of(partial).read_text(encoding="utf-8").partition("\n")[0])
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def written(partial: Path, request: Mapping[str, Any], size: int) -> set[int]:
    """Numbers of the parts that are on disk of this very request."""
    if told(partial) != json.loads(json.dumps(request)) or not partial.is_file() or partial.stat().st_size != size:
        return set()
    lines = journal_of(partial).read_text(encoding="utf-8").splitlines(keepends=True)[1:]
    return {int(line) for line in lines if line.endswith("\n") and line.strip().isdigit()}


def publish(partial: Path, path: Path) -> None:
    """Make a partial file, all of whose parts are on disk, the one at `path`."""
    partial.replace(path)
    journal_of(partial).unlink(missing_ok=True)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(partial: Path) -> None:
    partial.unlink(missing_ok=True)
    journal_of(partial).unlink(missing_ok=True)


def journal_of(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.journal")


def _asked(repo: Repo, commit: str, part: Part, at: int, size: int) -> Iterator[bytes]:
    """From byte `at` on, in one answer."""
    hub = client()
    url = hub.hf_hub_url(repo.name, part.name, repo_type=repo.type, revision=commit)
    headers = {
        **hub.utils.build_hf_headers(),
        "Accept-Encoding": "identity",
        "Range": f"bytes={at}-{part.stop - 1}",
    }
    timeout = hub.constants.HF_HUB_DOWNLOAD_TIMEOUT
    with hub.utils.get_session().stream("GET", url, headers=headers, timeout=timeout) as answer:
        if answer.status_code == 416:
            raise WrongBytes(f"{repo}: {part.name} ends before byte {at}, where the hub tells of {size} bytes")
        hub.utils.hf_raise_for_status(answer)
        _check(repo, part, at, size, answer)
        for block in answer.iter_bytes():  # as they come: nothing is lost where the connection breaks off
            yield block[: part.stop - at]
            at = min(at + len(block), part.stop)


def _check(repo: Repo, part: Part, at: int, size: int, answer: Any) -> None:
    """That the answer is of these bytes of a file of this size."""
    if answer.status_code == 206:
        known = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range") or "")
        first, whole = (int(known[1]), int(known[2])) if known else (-1, -1)
    else:  # the whole file, by a server that knows no ranges
        first, whole = 0, int(answer.headers.get("Content-Length") or -1)
    if whole != size:
        raise WrongBytes(f"{repo}: {part.name} is sent with {whole} bytes, where the hub tells of {size}")
    if first != at:
        raise LawaError(f"{repo}: {part.name} is sent from byte {first} on, where {at} was asked for; it has no ranges")


def _write(descriptor: int, block: bytes, at: int) -> None:
    left = memoryview(block)
    while left:
        done = os.pwrite(descriptor, left, at)
        left, at = left[done:], at + done
