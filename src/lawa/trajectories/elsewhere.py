"""Files that a run published at an address of its own, not on the hub: in parts, tried again, gone on with. No torch.

There is no commit to pin them to and no digest to compare: their sizes are, with what the server tells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from lawa.checkpoints import hub_parts
from lawa.checkpoints.hub_client import Patience, Unreachable, first_line, passes, patiently
from lawa.checkpoints.hub_parts import Part
from lawa.errors import LawaError

_BLOCK = 1 << 20  # bytes
_SILENCE = 60  # seconds without a byte


def fetch(address: str, names: Sequence[str], place: Path, *, offline: bool = False) -> Path:
    """The folder `place` with these files of `address`/NAME; what is there already is not asked for again.

    Raises LawaError where one cannot be had; what has come of it stays, and the next call goes on after it.
    """
    missing = [name for name in names if not (place / name).is_file()]
    if missing and offline:
        raise LawaError(f"{address}/{missing[0]} was not fetched yet, and the network is not used (--offline)")
    place.mkdir(parents=True, exist_ok=True)
    for name in missing:
        try:
            _fetch(f"{address}/{name}", place / name)
        except Unreachable as away:
            raise LawaError(
                f"{away}; what has come is kept: try again, or bring the file by other means to {place / name}"
            ) from None
    return place


def _fetch(url: str, into: Path) -> None:
    size = patiently(lambda: _size(url))
    partial = into.with_name(f".{into.name}.partial")
    hub_parts.fill(
        partial,
        hub_parts.parts([(into.name, 0, size)]),
        request={"url": url, "bytes": size},
        read=lambda part: _read(url, part, size),
    )
    hub_parts.publish(partial, into)


def _size(url: str) -> int:
    with _asked(url, method="HEAD") as answer:
        told = answer.headers.get("Content-Length")
        if told is None:
            raise LawaError(f"{url} does not tell its size, so it cannot be fetched in parts; bring it by other means")
        return int(told)


def _read(url: str, part: Part, size: int) -> Iterator[bytes]:
    """The bytes of a part; a connection that breaks off is gone on with where it did."""
    at, patience = part.start, Patience()
    while at < part.stop:
        try:
            with _asked(url, Range=f"bytes={at}-{part.stop - 1}") as answer:
                if answer.headers.get("Content-Range") != f"bytes {at}-{part.stop - 1}/{size}":
                    raise LawaError(f"{url} is sent otherwise than it was asked for; it has no ranges, or has changed")
                while block := answer.read(min(_BLOCK, part.stop - at)):
                    at += len(block)
                    patience.renew()
                    yield block
            if at < part.stop:
                raise Unreachable(f"{url} breaks off at byte {at} of {part.stop}", passing=True)
        except Unreachable as away:
            patience.wait(away)


@contextmanager
def _asked(url: str, *, method: str = "GET", **headers: str) -> Iterator[Any]:
    try:
        with urlopen(Request(url, headers=headers, method=method), timeout=_SILENCE) as answer:
            yield answer
    except HTTPError as refused:
        refused.close()
        if not passes(refused.code):
            raise LawaError(f"{url} is refused ({first_line(refused)}); see whether it is still there") from None
        raise Unreachable(f"{url} is not sent ({first_line(refused)})", passing=True) from None
    except (OSError, HTTPException) as failed:
        raise Unreachable(
            f"{url} cannot be reached ({first_line(failed)})", passing=isinstance(failed, TimeoutError | HTTPException)
        ) from None
