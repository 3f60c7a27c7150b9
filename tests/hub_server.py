"""A Hugging Face hub on this machine that serves models and data sets: revisions, files, ranges, its ways to refuse,
and what goes wrong on the way."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants as constants
import pytest

from lawa.checkpoints import hub_client

Files = dict[str, bytes]


@dataclass
class Fault:
    """What happens to requests whose "METHOD path" `at` is found in: to `times` of them, after the first `skip`.

    status   answered instead, with `headers`
    pause    seconds before the answer, until the hub closes at the latest
    change   of a file's content, before a range of it is sent
    cut      bytes of a body after which it breaks off
    then     called once the answer is sent
    """

    at: str
    times: int = 1
    skip: int = 0
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    pause: float = 0.0
    change: Callable[[bytes], bytes] | None = None
    cut: int | None = None
    then: Callable[[], None] = lambda: None


@dataclass
class Hub:
    """
    repos     {ORG/NAME or datasets/ORG/NAME: {revision: {file: content}}}
    past      what revisions were before they moved: found by commit
    refused   {ORG/NAME: (status, the hub's code for it)}
    private   {ORG/NAME: the token that sees it}
    requests  "METHOD path", as they came
    ranges    (file, its Range header or None) of every body, as they came
    cut       {file: bytes} after which the next transfer of it breaks off, once
    slept     seconds that lawa would have waited between its tries
    """

    repos: dict[str, dict[str, Files]]
    past: dict[str, list[Files]] = field(default_factory=dict)
    refused: dict[str, tuple[int, str]] = field(default_factory=dict)
    private: dict[str, str] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    ranges: list[tuple[str, str | None]] = field(default_factory=list)
    cut: dict[str, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    slept: list[float] = field(default_factory=list)
    endpoint: str = ""
    closed: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def move(self, repo: str, revision: str, files: Files) -> None:
        """The revision is another commit now; the one before is still found by its name."""
        self.past.setdefault(repo, []).append(self.repos[repo][revision])
        self.repos[repo][revision] = files

    def fault(self, request: str) -> Fault:
        """What happens to it."""
        with self.lock:
            for one in self.faults:
                if one.times and re.search(one.at, request):
                    if one.skip:
                        one.skip -= 1
                        continue
                    one.times -= 1
                    return one
        return Fault("")

    def commit(self, repo: str, revision: str) -> str:
        """It follows from the content, so that equal revisions have equal commits."""
        return self.commit_of(repo, self.repos[repo][revision])

    def commit_of(self, repo: str, files: Files) -> str:
        told = [(name, hashlib.sha256(files[name]).hexdigest()) for name in sorted(files)]
        return hashlib.sha1(json.dumps([repo, told]).encode()).hexdigest()

    def files(self, repo: str, revision: str) -> Files | None:
        known = self.repos[repo]
        if revision in known:
            return known[revision]
        every = [*known.values(), *self.past.get(repo, [])]
        return next((files for files in every if self.commit_of(repo, files) == revision), None)

    def fetched(self) -> list[str]:
        """Names of the files whose contents were asked for, sorted."""
        return sorted(request.rpartition("/")[2] for request in self.requests if re.match("GET .*/resolve/", request))


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        request = f"{self.command} {path}"
        self.hub.requests.append(request)
        fault = self.hub.fault(request)
        if fault.pause:
            self.hub.closed.wait(fault.pause)
        if fault.status:
            self.say(fault.status, {"error": "it went wrong"}, fault.headers)
        else:
            self.found(path, fault, body=body)
        fault.then()

    def found(self, path: str, fault: Fault, *, body: bool) -> None:
        pattern = r"(?:/api/models|/api(?=/datasets))?/((?:datasets/)?[^/]+/[^/]+)/(refs|revision|tree|resolve)"
        if re.fullmatch(r"/api/(?:models|datasets)/[^/]+/[^/]+", path):
            path += "/revision/main"
        found = re.match(pattern + r"(?:/([^/]+))?(?:/(.+))?$", path)
        if found is None:
            return self.say(404, {"error": "no such page"})
        repo, what, revision, name = found.groups()
        if self.hub.private.get(repo) not in (None, (self.headers.get("Authorization") or "").removeprefix("Bearer ")):
            return self.say(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        if repo in self.hub.refused:
            status, code = self.hub.refused[repo]
            return self.say(status, {"error": code}, {"X-Error-Code": code})
        if repo not in self.hub.repos:
            return self.say(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        if what == "refs":
            branches = [{"name": one, "ref": f"refs/heads/{one}", "targetCommit": "0"} for one in self.hub.repos[repo]]
            return self.say(200, {"branches": branches, "tags": [], "converts": []})
        files = self.hub.files(repo, revision)
        if files is None:
            return self.say(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        commit = self.hub.commit_of(repo, files)
        if what == "revision":
            siblings = [
                {"rfilename": one, "size": len(content), **_lfs(one, content)} for one, content in files.items()
            ]
            return self.say(200, {"id": repo, "modelId": repo, "sha": commit, "siblings": siblings, "tags": []})
        if what == "tree":
            tree = [
                {"type": "file", "path": one, "size": len(content), "oid": _etag(content), **_lfs(one, content)}
                for one, content in files.items()
            ]
            return self.say(200, tree)
        if name not in files:
            return self.say(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        return self.send(name, files[name], commit, fault, body=body)

    def send(self, name: str, content: bytes, commit: str, fault: Fault, *, body: bool) -> None:
        etag = _etag(content)
        if body:
            self.hub.ranges.append((name, self.headers.get("Range")))
        content = fault.change(content) if fault.change else content
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        first = int(asked[1]) if asked else 0
        last = min(int(asked[2]), len(content) - 1) if asked and asked[2] else len(content) - 1
        part = content[first : last + 1]
        if asked and not part:
            return self.say(416, {"error": "no such range"}, {"Content-Range": f"bytes */{len(content)}"})
        self.send_response(206 if asked else 200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.end_headers()
        if body:
            cut = self.hub.cut.pop(name, fault.cut)
            self.wfile.write(part if cut is None else part[:cut])
            self.close_connection = cut is not None
        return None

    def say(self, status: int, found: Any, headers: Mapping[str, str] | None = None) -> None:
        content = json.dumps(found).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": len(content),
            **(headers or {}),
        }.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client may go while it is answered: it waited long enough, or was killed."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def serving(repos: dict[str, dict[str, Files]], cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Within the block huggingface_hub talks to it and keeps what it fetches in `cache`."""
    hub = Hub(repos)
    handler = type("Own", (Handler,), {"hub": hub})
    with _Server(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        use(hub.endpoint, cache, monkeypatch)
        monkeypatch.setattr(hub_client, "sleep", hub.slept.append)
        try:
            yield hub
        finally:
            hub.closed.set()
            server.shutdown()


def use(endpoint: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)


def _etag(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _lfs(name: str, content: bytes) -> dict[str, Any]:
    """Large kinds of files are kept by their SHA-256."""
    if not name.endswith((".safetensors", ".bin", ".pt", ".idx", ".npy", ".jsonl")):
        return {}
    return {"lfs": {"sha256": _etag(content), "oid": _etag(content), "size": len(content), "pointerSize": 134}}
