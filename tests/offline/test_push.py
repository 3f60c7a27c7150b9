"""An output goes to the hub in one commit, by the real client, to a hub on this machine."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lawa.errors import LawaError
from lawa.offline.push import push

huggingface_hub = pytest.importorskip("huggingface_hub")


class Hub(BaseHTTPRequestHandler):
    asked: list[tuple[str, Any]]
    refuses: str = "nothing"

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

    def answer(self, code: int, found: dict[str, Any]) -> None:
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
    handler = type("Own", (Hub,), {"asked": []})
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
    assert push(made, "me/mean", private=True, title="Average of 3").endswith("/commit/1")
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


@pytest.mark.parametrize("refuses", ["/repos/create", "/commit/"])
def test_a_refusal_is_one_sentence_and_the_output_stays(refuses: str, hub: type[Hub], made: Path) -> None:
    hub.refuses = refuses
    with pytest.raises(LawaError, match=r"mean is whole, and was not uploaded to me/mean \(.*403.*hf upload me/mean"):
        push(made, "me/mean", title="t")
    assert len([*made.iterdir()]) == 4


def test_no_network_is_one_sentence(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint(monkeypatch, 9)
    with pytest.raises(LawaError, match="was not uploaded to me/mean"):
        push(made, "me/mean", title="t")


def test_a_wrong_name_is_one_sentence(made: Path, hub: type[Hub]) -> None:
    with pytest.raises(LawaError, match="was not uploaded to not a repo/x"):
        push(made, "not a repo/x", title="t")
