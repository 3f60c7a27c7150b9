"""Megatron's files, written here by hand, are read in place; what is wrong with them is named."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest

from lawa.data import megatron
from lawa.data.megatron import open_index, open_megatron
from lawa.data.order import Order, batch
from lawa.data.sources import MegatronSource, TextSource
from lawa.data.store import TokenStore, build_or_open, open_store
from lawa.data.tokenizer import train
from lawa.errors import LawaError

CODES = {"B": 1, "b": 2, "h": 3, "i": 4, "q": 5, "H": 8}
DOCUMENTS = [[5, 6, 7, 0], [8, 9, 0], [1, 2, 3, 4, 5, 6, 0], [250, 0], [11, 12, 13, 14]]


def write(prefix: Path, documents: list[list[int]], *, letter: str = "H", split: int = 0) -> Path:
    """An independent writer: one struct after another. `split` cuts the first document into two sequences."""
    sequences = [documents[0][:split], documents[0][split:], *documents[1:]] if split else documents
    width = struct.calcsize("<" + letter)
    starts = [0, *range(1 + bool(split), len(sequences) + 1)]
    pointers = [width * sum(map(len, sequences[:i])) for i in range(len(sequences))]
    with prefix.with_name(f"{prefix.name}.bin").open("wb") as tokens:
        for sequence in sequences:
            tokens.write(struct.pack(f"<{len(sequence)}{letter}", *sequence))
    with prefix.with_name(f"{prefix.name}.idx").open("wb") as index:
        index.write(b"MMIDIDX\x00\x00" + struct.pack("<Q", 1) + struct.pack("<B", CODES[letter]))
        index.write(struct.pack("<Q", len(sequences)) + struct.pack("<Q", len(starts)))
        index.write(struct.pack(f"<{len(sequences)}i", *map(len, sequences)))
        index.write(struct.pack(f"<{len(sequences)}q", *pointers) + struct.pack(f"<{len(starts)}q", *starts))
    return prefix


def flat(documents: list[list[int]]) -> list[int]:
    return [i for document in documents for i in document]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    train(["ab ab"], 257).save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def build(tmp_path: Path, prefix: Path, tokenizer: Path, fraction: float = 0.3, name: str = "store") -> TokenStore:
    return build_or_open(
        tmp_path / name,
        sources={"pile": MegatronSource(megatron=str(prefix))},
        validation_fraction=fraction,
        tokenizer=tokenizer,
        vocab_size=None,
    )


@pytest.mark.parametrize(("letter", "split"), [("H", 0), ("h", 2), ("i", 0), ("q", 1), ("B", 3)])
def test_every_token_and_document_is_read_back(tmp_path: Path, letter: str, split: int):
    found = open_megatron(write(tmp_path / "data", DOCUMENTS, letter=letter, split=split))
    assert found.ids.tolist() == flat(DOCUMENTS)
    assert isinstance(found.ids, np.memmap)
    assert found.ids.dtype.itemsize == struct.calcsize("<" + letter)
    assert len(found.lengths) == 5 + bool(split)
    assert found.offsets().tolist() == [0, 4, 7, 14, 16, 20]
    found.check(251)


def test_the_last_documents_are_held_out(tmp_path: Path, tokenizer: Path):
    prefix = write(tmp_path / "data", DOCUMENTS)
    for name, fraction, kept in (("a", 0.3, 3), ("b", 0.05, 4), ("c", 0.95, 1), ("d", 0.6, 2)):
        store = build(tmp_path, prefix, tokenizer, fraction, name)
        assert store.train["pile"].tolist() == flat(DOCUMENTS[:kept])
        assert store.validation["pile"].tolist() == flat(DOCUMENTS[kept:])
        counts = store.info["splits"]
        assert (counts["train"]["documents"], counts["validation"]["documents"]) == (kept, 5 - kept)
        assert (store.train_tokens, store.validation_tokens) == tuple(
            map(len, (store.train["pile"], store.validation["pile"]))
        )
        assert store.documents("validation", "pile").tolist() == [
            sum(map(len, DOCUMENTS[kept:i])) for i in range(kept, 6)
        ]
    assert not list((tmp_path / "a").rglob("*.bin"))  # nothing was copied
    assert counts["train"]["sources"]["pile"]["end_of_text"] == 0.8


def test_a_store_of_megatron_files_trains(tmp_path: Path, tokenizer: Path):
    store = build(tmp_path, write(tmp_path / "data", DOCUMENTS, letter="i"), tokenizer)
    order = Order.over(store.train, {}, context=4, batch=3, seed=0)
    first = batch(store.train, order, 1)
    assert first.dtype == np.int64
    assert sorted(first.tolist()) == [[2, 3, 4, 5, 6], [5, 6, 7, 0, 8], [8, 9, 0, 1, 2]]


def test_touched_files_are_compared_and_altered_ones_refused(tmp_path: Path, tokenizer: Path):
    prefix = write(tmp_path / "data", DOCUMENTS)
    digest = build(tmp_path, prefix, tokenizer).digest
    os.utime(tmp_path / "data.bin", ns=(1, 1))
    assert open_store(tmp_path / "store").digest == build(tmp_path, prefix, tokenizer).digest == digest
    write(prefix, [*DOCUMENTS[:-1], [11, 12, 13, 15]])
    with pytest.raises(
        LawaError, match=r"data.bin is not the file that the token store .*store was built with; put it"
    ):
        open_store(tmp_path / "store")
    (tmp_path / "data.bin").unlink()
    with pytest.raises(LawaError, match=r"data.bin does not exist; a Megatron source names the prefix"):
        open_store(tmp_path / "store")
    write(prefix, [*DOCUMENTS[:-1], [11, 12, 13, 15]])
    assert build(tmp_path, prefix, tokenizer, name="other").digest != digest


def test_another_fraction_is_another_request(tmp_path: Path, tokenizer: Path):
    prefix = write(tmp_path / "data", DOCUMENTS)
    build(tmp_path, prefix, tokenizer)
    with pytest.raises(LawaError, match=r"validation.fraction is 0.3 there and 0.5 here"):
        build(tmp_path, prefix, tokenizer, 0.5)


def test_a_large_file_is_sampled_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(megatron, "_SAMPLE", 16)
    monkeypatch.setattr(megatron, "_SAMPLES", 4)
    found = open_megatron(write(tmp_path / "data", [list(range(1000))]))
    assert found.sample().tolist() == [start + i for start in (0, 330, 661, 992) for i in range(8)]


def test_a_vocabulary_that_is_too_small_is_refused(tmp_path: Path, tokenizer: Path):
    prefix = write(tmp_path / "data", [*DOCUMENTS, [300, 0]])
    with pytest.raises(LawaError, match=r"data.bin holds the id 300, and the vocabulary of .* ends at 256; give the"):
        build(tmp_path, prefix, tokenizer)
    with pytest.raises(LawaError, match="holds the id -1"):
        build(tmp_path, write(tmp_path / "data", [[1, -1], [2]], letter="h"), tokenizer)
    assert not (tmp_path / "store").exists()


def test_without_a_tokenizer_nothing_says_what_the_ids_mean(tmp_path: Path):
    source = {"pile": MegatronSource(megatron=str(write(tmp_path / "data", DOCUMENTS)))}
    with pytest.raises(LawaError, match="Megatron's token files need the tokenizer that made them"):
        build_or_open(tmp_path / "store", sources=source, validation_fraction=0.1, vocab_size=300)


def altered(at: int, value: bytes) -> tuple[str, slice, bytes]:
    return ".idx", slice(at, at + len(value)), value


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (altered(0, b"XMIDIDX"), r"data.idx is no index of Megatron's .*MMIDIDX.; name another prefix"),
        ((".idx", slice(20, None), b""), "data.idx is no index of Megatron's"),
        (altered(9, b"\2"), "has version 2 and dtype 8; version 1 with whole numbers can be read: write it anew"),
        (altered(17, b"\6"), "has version 1 and dtype 6; version 1"),
        (
            (".idx", slice(-8, None), b""),
            r"data.idx has 134 bytes, and its header speaks of 142; it is truncated: fetch",
        ),
        ((".bin", slice(-2, None), b""), r"data.bin has 38 bytes, and its index speaks of 40; fetch or write it anew"),
        (
            altered(34 + 20 + 8, b"\2"),
            r"sequences of .*data.idx do not lie end to end in .*data.bin; write the two anew",
        ),
        (altered(34 + 60, b"\1"), r"documents of .*data.idx do not cover its sequences in order; write it anew"),
        (altered(18, b"\0"), "truncated"),
    ],
)
def test_what_is_wrong_with_the_files_is_named(tmp_path: Path, change: tuple[str, slice, bytes], sentence: str):
    prefix = write(tmp_path / "data", DOCUMENTS)
    suffix, where, value = change
    file = tmp_path / f"data{suffix}"
    content = bytearray(file.read_bytes())
    content[where] = value
    file.write_bytes(content)
    with pytest.raises(LawaError, match=sentence):
        open_megatron(prefix).check(257)


def test_an_index_without_documents_is_no_source(tmp_path: Path):
    """Such is that of Pythia's preshuffled batches."""
    prefix = write(tmp_path / "data", DOCUMENTS)
    content = (tmp_path / "data.idx").read_bytes()
    (tmp_path / "data.idx").write_bytes(content[:26] + struct.pack("<Q", 1) + content[34:-40])
    assert open_index(tmp_path / "data.idx").documents.tolist() == [0]
    with pytest.raises(LawaError, match=r"data.idx lists no document; name another prefix"):
        open_megatron(prefix)


def test_one_document_cannot_be_split(tmp_path: Path, tokenizer: Path):
    with pytest.raises(LawaError, match=r"one document, which cannot be split; name validation text"):
        build(tmp_path, write(tmp_path / "data", [[1, 2, 3]]), tokenizer)


def test_megatron_files_and_text_are_mixed(tmp_path: Path, folder: Path, tokenizer: Path):
    store = build_or_open(
        tmp_path / "store",
        sources={
            "pile": MegatronSource(megatron=str(write(tmp_path / "data", DOCUMENTS, letter="i")), weight=3),
            "plays": TextSource(paths=[str(folder)]),
        },
        validation_fraction=0.3,
        tokenizer=tokenizer,
    )
    assert list(store.train) == list(store.validation) == ["pile", "plays"]
    assert store.weights["train"] == {"pile": 3, "plays": 1}
    order = Order.over(store.train, store.weights["train"], context=4, batch=64, seed=0)
    assert batch(store.train, order, 1).shape == (64, 5)
