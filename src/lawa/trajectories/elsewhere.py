"""Files that a run published at an address of its own, and not on the hub: fetched whole, gone on with, published once.

There is no commit to pin them to and no digest to compare: their sizes are, with what the server tells.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from lawa.errors import LawaError

_BLOCK = 1 << 20  # bytes
_PATIENCE = 60  # seconds without a byte


def fetch(address: str, names: Sequence[str], place: Path, *, offline: bool = False) -> Path:
    """The folder `place` with these files of `address`/NAME; what is there already is not asked for again.

    Raises LawaError where one cannot be had; what has come of it stays, and the next call goes on after it.
    """
    missing = [name for name in names if not (place / name).is_file()]
    if missing and offline:
        raise LawaError(f"{address}/{missing[0]} was not fetched yet, and the network is not used (--offline)")
    place.mkdir(parents=True, exist_ok=True)
    for name in missing:
        _fetch(f"{address}/{name}", place / name)
    return place


def _fetch(address: str, into: Path) -> None:
    partial = into.with_name(f".{into.name}.partial")
    had = partial.stat().st_size if partial.is_file() else 0
    asked = Request(address, headers={"Range": f"bytes={had}-"} if had else {})
    try:
        with urlopen(asked, timeout=_PATIENCE) as answer:
            _write(answer, partial, into, had if answer.status == 206 else 0)
    except HTTPError as refused:
        if refused.code != 416 or refused.headers.get("Content-Range", "").rpartition("/")[2] != str(had):
            raise _failed(address, into, refused) from None  # else all of it has come
    except (OSError, HTTPException) as failed:
        raise _failed(address, into, failed) from None
    partial.rename(into)


def _failed(address: str, into: Path, why: Exception) -> LawaError:
    reason = str(why).partition("\n")[0] or type(why).__name__
    return LawaError(
        f"{address} cannot be fetched ({reason}); what has come is kept: try again, or bring the file by "
        f"other means to {into}"
    )


def _write(answer: HTTPResponse, partial: Path, into: Path, had: int) -> None:
    told = answer.headers.get("Content-Length")
    expected = had + int(told) if told else None
    room = shutil.disk_usage(into.parent).free
    if expected is not None and expected - had > room:
        raise LawaError(f"{into.parent} has {room / 1e9:.1f} GB of room, and {into.name} needs {expected / 1e9:.1f} GB")
    with partial.open("ab" if had else "wb") as file:
        shutil.copyfileobj(answer, file, _BLOCK)
        size = file.tell()
    if expected is not None and size != expected:
        raise LawaError(f"{into.name} broke off after {size} of {expected} bytes; what has come is kept: try again")
