"""Which sequences a text is, and how many bytes they stand for."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lawa.data.batches import Batches
from lawa.data.order import validation_sequences
from lawa.data.sources import TextSource
from lawa.data.store import build, open_store
from lawa.data.tokenizer import encode
from lawa.errors import LawaError, UsageError
from lawa.evaluation.text import of_batches, of_files, of_ids, of_store, token_bytes


def targets(text):
    parts = [text.sequences[:, 1:].ravel(), *([] if text.rest is None else [text.rest[1:]])]
    return np.concatenate(parts).tolist()


@pytest.mark.parametrize("context", [1, 7, 32, 10_000])
def test_every_token_of_a_file_is_predicted_once(book, tokenizer, context):
    ids = [*encode(tokenizer, book.read_text()), 0]
    text = of_files([book], tokenizer, context)
    assert targets(text) == ids
    assert text.tokens == len(ids)
    assert text.nbytes == len(book.read_bytes())
    inputs = [*text.sequences[:, :-1].ravel(), *([] if text.rest is None else text.rest[:-1])]
    assert inputs == [0, *ids[:-1]]
    assert text.sequences.shape == (len(ids) // context, context + 1)


def test_documents_end_with_an_end_of_text_as_in_a_store(tmp_path, tokenizer):
    file = tmp_path / "news.jsonl"
    rows = ["The quick dog.", "Grüße", "the sun"]
    file.write_text("".join(json.dumps({"body": row}) + "\n" for row in rows), encoding="utf-8")
    text = of_files([file], tokenizer, 5, field="body")
    assert targets(text) == [token for row in rows for token in [*encode(tokenizer, row), 0]]
    assert text.nbytes == sum(len(row.encode()) for row in rows)
    with pytest.raises(LawaError, match="'text' is missing"):
        of_files([file], tokenizer, 5)


def test_a_part_of_a_text_is_spread_over_it_and_has_its_share_of_the_bytes():
    ids = np.arange(101)
    text = of_ids(ids, 1000, 10, 5)
    assert text.sequences[:, 0].tolist() == [0, 20, 40, 60, 80]
    assert (text.tokens, text.nbytes, text.rest) == (50, 500, None)
    whole = of_ids(ids, 1000, 10, 10)
    assert (whole.tokens, whole.nbytes) == (100, 1000)
    assert of_ids(np.arange(104), 1000, 10, 11).tokens == 103  # it has no more
    assert of_ids(np.arange(4), 9, 10, 2).rest.tolist() == [0, 1, 2, 3]
    with pytest.raises(UsageError, match="limit=0"):
        of_ids(ids, 1000, 10, 0)
    with pytest.raises(LawaError, match="has no text"):
        of_ids(ids[:1], 0, 10)


@pytest.fixture
def store(tmp_path, corpus):
    sources = {"a": TextSource(paths=[str(corpus / "00.txt")], weight=3.0),
               "b": TextSource(paths=[str(corpus / "01.txt"), str(corpus / "02.txt")])}  # fmt: skip
    train = {"t": TextSource(paths=[str(corpus / "05.txt")])}
    build(tmp_path / "store", sources=train, validation=sources, vocab_size=300)
    return open_store(tmp_path / "store")


@pytest.mark.parametrize("limit", [None, 1, 9, 10_000])
def test_a_store_gives_the_sequences_of_the_driver(store, limit):
    text = of_store(store, 16, limit)
    expected = validation_sequences(store.validation, 16, limit, store.weights["validation"])
    assert np.array_equal(text.sequences, expected)
    assert text.tokens == expected[:, 1:].size


def test_a_stores_bytes_are_counted_by_its_tokens(store):
    counts = store.info["splits"]["validation"]["sources"]
    ratio = {name: counts[name]["bytes"] / counts[name]["tokens"] for name in counts}
    text = of_store(store, 16, 8)  # 6 of a, 2 of b
    assert text.nbytes == pytest.approx(16 * (6 * ratio["a"] + 2 * ratio["b"]))
    whole = of_store(store, 1)
    assert whole.nbytes == pytest.approx(sum(one["bytes"] - ratio[name] for name, one in counts.items()))
    del counts["b"]["bytes"]  # as Megatron's files
    assert of_store(store, 16, 8).nbytes is None


def test_byte_level_ids_tell_their_bytes(tokenizer, book):
    ids = encode(tokenizer, book.read_text())
    sizes = token_bytes(tokenizer)
    assert sizes[ids].sum() == len(book.read_bytes())
    assert sizes[0] == 0
    tokenizer.backend_tokenizer.decoder, own = None, tokenizer.backend_tokenizer.decoder
    try:
        assert token_bytes(tokenizer) is None
    finally:
        tokenizer.backend_tokenizer.decoder = own


class Counting:
    """Batches of four rows, with the update in each."""

    context, batch, updates, digest = 8, 4, range(1, 10), ""

    def rows(self, t, rows=None):
        assert t in self.updates
        return np.full((4, 9), t, dtype=np.int64)[rows or slice(None)]

    def describe(self):
        return {}


def test_batches_of_some_updates(tokenizer):
    assert isinstance(Counting(), Batches)
    text = of_batches(Counting(), range(3, 5))
    assert text.sequences[:, 0].tolist() == [3, 3, 3, 3, 4, 4, 4, 4]
    assert text.nbytes is None
    part = of_batches(Counting(), range(8, 10**9), 6, tokenizer=tokenizer)  # what is not needed is not read
    assert part.sequences[:, 0].tolist() == [8, 8, 8, 8, 9, 9]
    assert part.nbytes == 6 * 8  # ids 1 … 256 are bytes
    with pytest.raises(UsageError, match="no update"):
        of_batches(Counting(), range(0))


def test_a_digest_is_that_of_what_is_predicted(book, tokenizer):
    text = of_files([book], tokenizer, 7)
    assert text.digest == of_files([book], tokenizer, 7, name="other").digest
    others = [of_files([book], tokenizer, 8), of_files([book], tokenizer, 7, 3)]
    book.write_text(book.read_text()[:-1] + "!")
    others.append(of_files([book], tokenizer, 7))
    assert len({text.digest, *(other.digest for other in others)}) == 4
