"""A Hugging Face hub on this machine that serves models: revisions, files, ranges, and its ways to refuse."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants as constants
import pytest

Files = dict[str, bytes]


@dataclass
class Hub:
    """
    repos     {ORG/NAME: {revision: {file: content}}}
    refused   {ORG/NAME: (status, the hub's code for it)}
    requests  "METHOD path", as they came
    cut       {file: bytes} after which the next transfer of it breaks off, once
    """

    repos: dict[str, dict[str, Files]]
    refused: dict[str, tuple[int, str]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    cut: dict[str, int] = field(default_factory=dict)
    endpoint: str = ""

    def commit(self, repo: str, revision: str) -> str:
        """It follows from the content, so that equal revisions have equal commits."""
        files = self.repos[repo][revision]
        told = [(name, hashlib.sha256(files[name]).hexdigest()) for name in sorted(files)]
        return hashlib.sha1(json.dumps([repo, told]).encode()).hexdigest()

    def files(self, repo: str, revision: str) -> Files | None:
        known = self.repos[repo]
        if revision in known:
            return known[revision]
        return next((files for name, files in known.items() if self.commit(repo, name) == revision), None)

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
        self.hub.requests.append(f"{self.command} {path}")
        found = re.match(r"(?:/api/models)?/([^/]+/[^/]+)/(refs|revision|tree|resolve)(?:/([^/]+))?(?:/(.+))?$", path)
        if found is None:
            return self.say(404, {"error": "no such page"})
        repo, what, revision, name = found.groups()
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
        commit = self.hub.commit(repo, next(one for one, own in self.hub.repos[repo].items() if own is files))
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
        return self.send(name, files[name], commit, body=body)

    def send(self, name: str, content: bytes, commit: str, *, body: bool) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        first = int(asked[1]) if asked else 0
        last = min(int(asked[2]), len(content) - 1) if asked and asked[2] else len(content) - 1
        part = content[first : last + 1]
        self.send_response(206 if asked else 200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{_etag(content)}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.end_headers()
        if body:
            cut = self.hub.cut.pop(name, None)
            self.wfile.write(part if cut is None else part[:cut])
            self.close_connection = cut is not None

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


@contextmanager
def serving(repos: dict[str, dict[str, Files]], cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Within the block huggingface_hub talks to it and keeps what it fetches in `cache`."""
    hub = Hub(repos)
    handler = type("Own", (Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        use(hub.endpoint, cache, monkeypatch)
        try:
            yield hub
        finally:
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
    """Weights are kept by their SHA-256."""
    if not name.endswith((".safetensors", ".bin", ".pt")):
        return {}
    return {"lfs": {"sha256": _etag(content), "oid": _etag(content), "size": len(content), "pointerSize": 134}}
