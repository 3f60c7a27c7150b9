"""Rows of the datasets package: saved folders, data files, the hub's commit; nothing leaves this machine."""

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest

from lawa.data.dataset import Dataset
from lawa.data.sources import DatasetSource, Source
from lawa.data.store import TokenStore, build_or_open
from lawa.errors import LawaError

TEXTS = [f"row {i}: the rain it raineth every day" for i in range(200)] + ["", "last"]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    datasets.Dataset.from_dict({"text": TEXTS, "id": list(range(len(TEXTS)))}).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


def texts(**source: Any) -> list[str]:
    return [document.text for document in Dataset(DatasetSource(**source)).documents()]


def build(tmp_path: Path, name: str = "store", **changed: Any) -> TokenStore:
    source: dict[str, Source] = {"rows": DatasetSource(**changed)}
    return build_or_open(tmp_path / name, sources=source, validation_fraction=0.2, vocab_size=300)


def test_saved_folders_of_one_split_and_of_several_are_read(tmp_path: Path, saved: Path):
    assert texts(dataset=str(saved)) == [text for text in TEXTS if text]
    both = datasets.DatasetDict(
        {"a": datasets.Dataset.from_dict({"text": ["x"]}), "b": datasets.Dataset.from_dict({"text": ["y"]})}
    )
    both.save_to_disk(tmp_path / "both")
    assert texts(dataset=str(tmp_path / "both"), split="b") == ["y"]
    with pytest.raises(
        LawaError, match=r"dataset .*both, split 'train', cannot be read \(.*\); correct its name, config"
    ):
        texts(dataset=str(tmp_path / "both"))


@pytest.mark.parametrize("streaming", [True, False])
def test_a_folder_of_data_files_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "files").mkdir()
    (tmp_path / "files/train.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in TEXTS))
    found = texts(dataset=str(tmp_path / "files"), text="body", streaming=streaming)
    assert found == [text for text in TEXTS if text]


def test_a_store_holds_every_row_once_and_opens_without_loading(
    tmp_path: Path, saved: Path, monkeypatch: pytest.MonkeyPatch
):
    seen: list[tuple[int, int | None]] = []
    source: dict[str, Source] = {"rows": DatasetSource(dataset=str(saved))}
    store = build_or_open(
        tmp_path / "store",
        sources=source,
        validation_fraction=0.2,
        vocab_size=300,
        progress=lambda done, total: seen.append((done, total)),
    )
    counts = store.info["splits"]
    assert counts["train"]["documents"] + counts["validation"]["documents"] == len([text for text in TEXTS if text])
    assert counts["validation"]["documents"] > 20
    size = sum(len(text.encode()) for text in TEXTS)
    assert counts["train"]["bytes"] + counts["validation"]["bytes"] == size
    assert seen == [(size, None), (size, size)]
    assert len(store.documents("train", "rows")) == counts["train"]["documents"] + 1
    assert store.info["sources"]["train.rows"]["path"] == str(saved)

    def never(self: Dataset) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(Dataset, "_load", never)
    assert build(tmp_path, dataset=str(saved)).digest == store.digest
    with pytest.raises(LawaError, match=r"train.rows.split is train there and test here"):
        build(tmp_path, dataset=str(saved), split="test")
    (saved / "state.json").write_text("{}")
    with pytest.raises(LawaError, match=r"text of train.rows only there: state.json; text of train.rows only here"):
        build(tmp_path, dataset=str(saved))


def test_a_row_that_will_not_do_is_named(tmp_path: Path, saved: Path):
    with pytest.raises(LawaError, match=r"dataset .*saved, row 0: the field 'body' is missing; name the field"):
        texts(dataset=str(saved), text="body")
    with pytest.raises(LawaError, match=r"row 0: the field 'id' is int, not text"):
        texts(dataset=str(saved), text="id")


class Hub(http.server.BaseHTTPRequestHandler):
    """Knows one dataset, and at which commit it is."""

    def do_GET(self) -> None:
        there = self.path.startswith("/api/datasets/some/corpus")
        answer = json.dumps({"id": "some/corpus", "sha": "c0ffee", "tags": []} if there else {}).encode()
        self.send_response(200 if there else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        yield
        server.shutdown()
        serving.join()


def test_a_revision_is_pinned_to_its_commit(hub: None, monkeypatch: pytest.MonkeyPatch):
    found = Dataset(DatasetSource(dataset="some/corpus", config="en", revision="v2"))
    assert found.commit == "c0ffee"
    assert found.provenance["commit"] == "c0ffee"
    assert found.record["revision"] == "v2"
    asked: dict[str, Any] = {}

    def load(name: str, config: str, **options: Any) -> list[dict[str, str]]:
        asked.update(options, name=name, config=config)
        return [{"text": "a row"}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert [document.text for document in found.documents()] == ["a row"]
    assert asked == {"name": "some/corpus", "config": "en", "split": "train", "revision": "c0ffee", "streaming": True}


def test_a_dataset_that_cannot_be_had_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        LawaError, match=r"dataset nobody/nothing, split 'train', cannot be read \(.*\); correct its name"
    ):
        texts(dataset="nobody/nothing")
