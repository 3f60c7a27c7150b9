"""Encoding on threads: the ids of one document after another, in order, whatever the threads; never much in memory."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lawa.data import encoding
from lawa.data.corpus import Document
from lawa.data.encoding import encode_all
from lawa.data.sources import TextSource
from lawa.data.store import build
from lawa.data.tokenizer import encode, train
from lawa.errors import LawaError

TEXTS = [f"the wind {i} and the rain<|endoftext|>\n日本" * (i % 7 + 1) for i in range(60)]
TOKENIZER = train(TEXTS, 320)


def documents(texts: list[str]) -> Iterator[Document]:
    for text in texts:
        yield Document(text=text, where="here", consumed=len(text.encode()), row=True)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_ids_are_those_of_one_text_after_another(monkeypatch: pytest.MonkeyPatch, workers: int):
    monkeypatch.setattr(encoding, "_CHUNK", 300)
    found = list(encode_all(documents(TEXTS), TOKENIZER, "<u2", workers))
    assert len(found) > 10
    assert [document.text for part in found for document in part.documents] == TEXTS
    assert [i for part in found for i in part.ids.tolist()] == [
        i for text in TEXTS for i in [*encode(TOKENIZER, text), 0]
    ]
    assert [n for part in found for n in part.lengths.tolist()] == [len(encode(TOKENIZER, text)) + 1 for text in TEXTS]


def test_a_tokenizer_with_truncation_padding_and_added_tokens_encodes_the_text_alone(tmp_path: Path):
    given = train(TEXTS, 320)
    given.backend_tokenizer.enable_truncation(3)
    given.backend_tokenizer.enable_padding(length=50)
    given.add_bos_token = True
    (found,) = encode_all(documents(TEXTS[:3]), given, "<u2", 1)
    assert found.ids.tolist() == [i for text in TEXTS[:3] for i in [*encode(TOKENIZER, text), 0]]


def test_a_tokenizer_without_a_fast_backend_is_called_as_it_is():
    class Slow:
        eos_token_id = 7

        def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
            return {"input_ids": [len(text)]}

    (found,) = encode_all(documents(["a", "bcd"]), Slow(), "<u4", 2)  # pyright: ignore[reportArgumentType]
    assert found.ids.tolist() == [1, 7, 3, 7]


def test_little_is_read_ahead_and_the_environment_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(encoding, "_CHUNK", 1)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    read: list[Document] = []
    running = encode_all((read.append(document) or document for document in documents(TEXTS)), TOKENIZER, "<u2", 2)
    for done in range(1, 20):
        next(running)
        assert len(read) == done + 4
    running.close()  # type: ignore[attr-defined]
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
    monkeypatch.delenv("TOKENIZERS_PARALLELISM")
    list(encode_all(documents(TEXTS), TOKENIZER, "<u2", 2))
    assert "TOKENIZERS_PARALLELISM" not in os.environ


def test_an_error_while_documents_are_read_comes_through():
    def broken() -> Iterator[Document]:
        yield from documents(TEXTS[:5])
        raise LawaError("line 6 is not JSON")

    with pytest.raises(LawaError, match="line 6"):
        list(encode_all(broken(), TOKENIZER, "<u2", 2))


def test_a_store_has_the_same_bytes_for_any_number_of_threads(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(encoding, "_CHUNK", 500)
    for workers in (1, 3):
        source = {"text": TextSource(paths=[str(folder)])}
        build(tmp_path / str(workers), sources=source, validation_fraction=0.3, vocab_size=300, workers=workers)
    assert (tmp_path / "1/manifest.json").read_bytes() == (tmp_path / "3/manifest.json").read_bytes()
