"""huggingface_hub as it is used here: repos, its errors as sentences, and what passes is tried again. No torch."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import Any, TypeVar

from lawa.errors import LawaError, require

T = TypeVar("T")

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_EXTRA = "hub"
_TRIES = 8  # in a row without a byte
_LONGEST = 60.0  # seconds between two tries, where the hub does not say how long
_PATIENCE = 600.0  # seconds of waiting in all
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_BROKEN = ("Timeout", "ReadError", "WriteError", "RemoteProtocolError", "ChunkedEncodingError")  # of httpx and httpcore
_RESET = re.compile(r";\s*t\s*=\s*(\d+)")  # of the hub's RateLimit header: "api";r=0;t=55


@dataclass(frozen=True)
class Repo:
    """A repo on the hub: ORG/NAME, and a branch, tag or commit of it.

    type  "model" or "dataset"
    """

    name: str
    revision: str | None = None
    type: str = "model"

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name

    @property
    def folder(self) -> Path:
        """Its folder in huggingface_hub's cache: blobs, snapshots, refs."""
        named = client().file_download.repo_folder_name(repo_id=self.name, repo_type=self.type)
        return Path(client().constants.HF_HUB_CACHE) / named

    @property
    def page(self) -> str:
        return f"{client().constants.ENDPOINT}/{'datasets/' if self.type == 'dataset' else ''}{self.name}"


class Unreachable(Exception):
    """The hub did not answer as it should: why, in words.

    passing  it may be otherwise soon: too many requests, a fault of its own, a connection that broke off
    after    seconds that the hub asks to wait
    """

    def __init__(self, why: str, *, passing: bool = False, after: float | None = None) -> None:
        super().__init__(why)
        self.passing, self.after = passing, after


class Patience:
    """How often, and how long in all, one thing is tried again."""

    def __init__(self) -> None:
        self._tries, self._waited = 0, 0.0

    def wait(self, away: Unreachable) -> None:
        """Until the next try: as long as the hub says, else 1, 2, 4 … 60 s, less up to a half by chance, so that
        several that were refused together do not come back together. Raises `away` where it is no use, or enough.
        """
        if not away.passing or self._tries == _TRIES:
            raise away
        pause = min(2.0**self._tries, _LONGEST) * random.uniform(0.5, 1) if away.after is None else away.after
        if self._waited + pause > _PATIENCE:
            raise Unreachable(f"{away}; it asks for {pause:.0f} s more" if away.after is not None else str(away))
        self._tries, self._waited = self._tries + 1, self._waited + pause
        sleep(pause)

    def renew(self) -> None:
        """Something came: the next fault is a first one. What was waited counts on."""
        self._tries = 0


def patiently(call: Callable[[], T]) -> T:
    """What `call` gives, tried again while it raises an Unreachable that passes."""
    patience = Patience()
    while True:
        try:
            return call()
        except Unreachable as away:
            patience.wait(away)


def passes(status: int) -> bool:
    """Whether an answer with this status may be otherwise soon."""
    return status in _PASSING


def parse(text: str) -> Repo | None:
    """ORG/NAME or ORG/NAME@REVISION; None for what can only be a path."""
    name, at, revision = text.partition("@")
    if not _NAME.fullmatch(name) or (at and not revision):
        return None
    return Repo(name, revision or None)


@contextmanager
def sentences(repo: Repo) -> Iterator[None]:
    """Errors of huggingface_hub as sentences, Unreachable where it did not answer."""
    errors, endpoint = client().errors, client().constants.ENDPOINT
    try:
        yield
    except errors.GatedRepoError:
        raise LawaError(
            f"{repo.name} is gated: accept its conditions at {repo.page}, then log in (hf auth login)"
        ) from None
    except errors.RepositoryNotFoundError:
        raise LawaError(
            f"{no_path(repo)}, nor a {repo.type} at {endpoint} that you may see; look at its name, or log in for a "
            "private one (hf auth login)"
        ) from None
    except errors.RevisionNotFoundError:
        raise LawaError(
            f"{repo.name} has no revision {repo.revision!r}; its branches and tags are at {repo.page}"
        ) from None
    except errors.LocalEntryNotFoundError as away:  # huggingface_hub has tried again by itself
        raise Unreachable(f"{endpoint} cannot be reached ({first_line(away.__cause__ or away)})") from None
    except errors.HfHubHTTPError as refused:
        answer: Any = refused.response
        if answer is not None and (passes(answer.status_code) or answer.status_code >= 500):
            raise Unreachable(
                f"{endpoint} does not answer as it should ({first_line(refused)})",
                passing=passes(answer.status_code),
                after=_asked_for(answer.headers),
            ) from None
        raise LawaError(f"{endpoint} refused {repo} ({first_line(refused)})") from None
    except errors.HFValidationError as wrong:
        raise LawaError(f"{repo} is no name of a repo ({first_line(wrong)})") from None
    except Exception as failed:  # of httpx, which is not imported for its errors; all others go on
        if isinstance(failed, ConnectionError) or type(failed).__module__.startswith(("httpx", "httpcore")):
            raise Unreachable(
                f"{endpoint} cannot be reached ({first_line(failed)})",
                passing=type(failed).__name__.endswith(_BROKEN) and "Connect" not in type(failed).__name__,
            ) from None
        raise


@contextmanager
def no_bars() -> Iterator[None]:
    """Without huggingface_hub's own bars: ours say how far it is."""
    bars = client().utils
    shown = not bars.are_progress_bars_disabled()
    bars.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bars()


def is_offline(asked: bool) -> bool:
    return asked or bool(client().constants.HF_HUB_OFFLINE)


def no_path(repo: Repo) -> str:
    """What a mistyped path is told first: it reads like a repo where it has one slash."""
    return f"there is no path {repo.name}"


def check_client(repo: Repo) -> None:
    """LawaError where huggingface_hub is not installed."""
    try:
        client()
    except LawaError as missing:
        raise LawaError(f"{no_path(repo)}; for a repo of that name on the hub, {missing}") from None


def client() -> Any:
    """huggingface_hub, or how to install it."""
    found = require("huggingface_hub", extra=_EXTRA)
    for module in ("constants", "errors", "file_download", "utils"):
        require(f"huggingface_hub.{module}", extra=_EXTRA)
    return found


def first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__


def _asked_for(headers: Any) -> float | None:
    """Seconds, from Retry-After or, where the limit is reached, the hub's RateLimit; a date is not looked at."""
    told = str(headers.get("Retry-After") or "").strip()
    if told.isdigit():
        return float(told)
    limit = str(headers.get("RateLimit") or "")
    reset = _RESET.search(limit)
    return float(reset[1]) + 1 if reset and "r=0" in limit.replace(" ", "") else None
