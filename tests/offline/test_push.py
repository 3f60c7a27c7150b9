"""An output goes to the hub in one commit, by the real client, to a hub on this machine."""

import base64
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lawa.errors import LawaError, UsageError
from lawa.offline.push import check, push, reserve

huggingface_hub = pytest.importorskip("huggingface_hub")


class Hub(BaseHTTPRequestHandler):
    asked: list[tuple[str, Any]]
    refuses: str = "nothing"
    held: list[str]

    def do_GET(self) -> None:
        tree = [{"type": "file", "path": path, "size": 1, "oid": "1"} for path in self.held]
        self.answer(*((200, tree) if "/tree/" in self.path else (404, {})))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        lines = [json.loads(line) for line in body.splitlines()]
        self.asked.append((self.path, lines[0] if len(lines) == 1 else lines))
        if self.refuses in self.path:
            self.answer(403, {"error": "You have no right to write here"})
        elif self.path.endswith("/repos/create"):
            self.answer(200, {"url": f"http://{self.headers['Host']}/me/mean", "id": "1"})
        elif "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in lines[0]["files"]
            ]
            self.answer(200, {"files": files})
        elif "/commit/" in self.path:
            self.answer(200, {"commitUrl": f"http://{self.headers['Host']}/me/mean/commit/1", "commitOid": "1"})
        else:
            self.answer(200, {"errors": [], "warnings": []})

    def answer(self, code: int, found: Any) -> None:
        body = json.dumps(found).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    handler = type("Own", (Hub,), {"asked": [], "held": [".gitattributes"]})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.01]).start()
        endpoint(monkeypatch, server.server_address[1])
        try:
            yield handler
        finally:
            server.shutdown()


def endpoint(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_TELEMETRY", True)  # it would ask, and keep answers
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    real = huggingface_hub.HfApi
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: real(endpoint=f"http://127.0.0.1:{port}"))


@pytest.fixture
def made(tmp_path: Path) -> Path:
    folder = tmp_path / "mean"
    folder.mkdir()
    for name in ("model.safetensors", "README.md", "provenance.json", "manifest.json"):
        (folder / name).write_bytes(name.encode())
    return folder


def test_every_file_in_one_commit(hub: type[Hub], made: Path) -> None:
    reserve("me/mean", private=True)
    assert push(made, "me/mean", title="Average of 3").endswith("/commit/1")
    created = next(body for path, body in hub.asked if path.endswith("/repos/create"))
    assert (created["name"], created["organization"], created["visibility"]) == ("mean", "me", "private")
    [(path, lines)] = [one for one in hub.asked if "/commit/" in one[0]]
    assert path == "/api/models/me/mean/commit/main"
    assert lines[0]["value"]["summary"] == "Average of 3"
    files = {line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines[1:]}
    assert files == {file.name: file.read_bytes() for file in made.iterdir()}
    assert not [path for path, _ in hub.asked if "/branch/" in path]


def test_to_a_branch_that_is_made(hub: type[Hub], made: Path) -> None:
    push(made, "me/mean", branch="step00001000", title="t")
    asked = [path for path, _ in hub.asked]
    assert "/api/models/me/mean/branch/step00001000" in asked
    assert "/api/models/me/mean/commit/step00001000" in asked


def test_no_older_weights_stay_in_force(hub: type[Hub], made: Path) -> None:
    """transformers would take model.safetensors before an index, and an index before .bin."""
    older = ["model-00001-of-00002.safetensors", "model.safetensors.index.json", "pytorch_model.bin"]
    older += ["pytorch_model.bin.index.json", "weights/.metadata", "weights/__0_0.distcp"]
    hub.held = [*older, "model.safetensors", "README.md", "LICENSE", ".gitattributes", "other/data.txt"]
    push(made, "me/mean", title="t")
    [(_, lines)] = [one for one in hub.asked if "/commit/" in one[0]]
    assert sorted(line["value"]["path"] for line in lines if line["key"] == "deletedFile") == sorted(older)
    assert len([line for line in lines if line["key"] == "file"]) == 4


def test_a_repo_that_cannot_be_made_is_one_sentence(hub: type[Hub]) -> None:
    hub.refuses = "/repos/create"
    with pytest.raises(LawaError, match=r"me/mean cannot be made on the hub \(.*403.*name another --push-to-hub"):
        reserve("me/mean")


@pytest.mark.parametrize("repo", ["mean", "not a repo/x", "me/mean@main", "/mean", "a/b/c"])
def test_what_is_no_name_of_a_model_is_told_at_once(hub: type[Hub], repo: str) -> None:
    with pytest.raises(UsageError, match=f"push_to_hub='{repo}' must be ORG/NAME"):
        check(repo)
    assert not hub.asked


def test_nobody_is_logged_in(hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    check("me/mean")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(LawaError, match=r"nobody is logged in to the hub, to upload to me/mean; log in"):
        check("me/mean")
    assert not hub.asked


def test_a_refusal_is_one_sentence_and_the_output_stays(hub: type[Hub], made: Path) -> None:
    hub.refuses = "/commit/"
    with pytest.raises(LawaError, match=r"mean is whole, and was not uploaded to me/mean \(.*403.*hf upload me/mean"):
        push(made, "me/mean", title="t")
    assert len([*made.iterdir()]) == 4


def test_no_network_is_one_sentence(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint(monkeypatch, 9)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between its tries
    with pytest.raises(LawaError, match="was not uploaded to me/mean"):
        push(made, "me/mean", title="t")
    with pytest.raises(LawaError, match="me/mean cannot be made on the hub"):
        reserve("me/mean")
