"""A text as a model predicts it: which sequences, and how many bytes the predicted tokens stand for.

a token store   its held-out text: the sequences on which `lawa train` evaluates
text files      every token is predicted once: the first after an end of text, each with up to `context` before it
                in its sequence; the last sequence is shorter, so that none is filled up. After every document
                comes an end of text, as in a store
batches         those of some updates, in the order that others gave them
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lawa.data.batches import Batches
from lawa.data.corpus import Texts
from lawa.data.encoding import encode_all
from lawa.data.order import count_sequences, quotas, validation_sequences
from lawa.data.sources import TextSource
from lawa.data.store import TokenStore
from lawa.errors import LawaError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True, eq=False)
class Text:
    """
    name       as tables and records call it
    sequences  int64 [n, context + 1]: inputs are all but the last token, targets all but the first
    rest       int64 [m + 1], 1 ≤ m < context: one more, shorter sequence; None where there is none
    nbytes     of the text that the targets stand for, of a part of a text its share of them; None where not known
    """

    name: str
    sequences: NDArray[np.int64]
    rest: NDArray[np.int64] | None = None
    nbytes: float | None = None

    @property
    def context(self) -> int:
        return self.sequences.shape[1] - 1

    @property
    def tokens(self) -> int:
        """That are predicted."""
        return len(self.sequences) * self.context + (0 if self.rest is None else len(self.rest) - 1)

    @cached_property
    def highest(self) -> int:
        """The largest id."""
        parts = [self.sequences] if self.rest is None else [self.sequences, self.rest]
        return max(int(part.max()) for part in parts if part.size)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of sequences and bytes: two texts with the same one have the same loss."""
        hashed = hashlib.sha256(f"{self.sequences.shape} {self.nbytes}".encode())
        hashed.update(np.ascontiguousarray(self.sequences, "<i8").data)
        if self.rest is not None:
            hashed.update(np.ascontiguousarray(self.rest, "<i8").data)
        return hashed.hexdigest()


def of_store(store: TokenStore, context: int, limit: int | None = None, *, name: str | None = None) -> Text:
    """The held-out text of a token store, as the driver evaluates on it with evaluation.sequences = limit.

    A source's bytes are counted in proportion to its tokens; of Megatron's files they are not known.
    """
    weights = store.weights["validation"]
    sources = store.info["splits"]["validation"]["sources"]
    there = {source: count_sequences(len(ids), context, source) for source, ids in store.validation.items()}
    shares = weights if len(there) > 1 else dict.fromkeys(there, 1.0)
    counts = there if limit is None else {name: min(n, there[name]) for name, n in quotas(shares, limit).items()}
    nbytes = [
        sources[source].get("bytes", np.nan) * n * context / sources[source]["tokens"] for source, n in counts.items()
    ]
    return Text(
        name=name or str(store.path),
        sequences=validation_sequences(store.validation, context, limit, weights),
        nbytes=_known(sum(nbytes)),
    )


def of_files(
    paths: Iterable[str | Path],
    tokenizer: PreTrainedTokenizerBase,
    context: int,
    limit: int | None = None,
    *,
    field: str = "text",
    name: str | None = None,
) -> Text:
    """Text and JSONL files, and folders of them, tokenized; of a JSONL line its `field`.

    limit  so many full sequences, spread evenly over the text; default: all of it
    """
    given = [str(path) for path in paths]
    corpus = Texts(TextSource(paths=given, text=field))
    corpus.read_through()
    ids, nbytes = [np.array([tokenizer.eos_token_id], dtype="<u4")], 0
    for encoded in encode_all(corpus.documents(), tokenizer, "<u4"):
        ids.append(encoded.ids)
        nbytes += sum(len(document.text.encode()) for document in encoded.documents)
    return of_ids(np.concatenate(ids), nbytes, context, limit, name=name or ", ".join(given))


def of_ids(
    ids: NDArray[np.integer], nbytes: int | None, context: int, limit: int | None = None, *, name: str = "text"
) -> Text:
    """Every token of `ids` but the first is predicted once; the rest as of_files has it."""
    if limit is not None and limit < 1:
        raise UsageError(f"limit={limit} must be at least 1")
    predicted = len(ids) - 1
    if predicted < 1:
        raise LawaError(f"{name} has no text; name another")
    n = predicted // context
    part = limit if limit is not None and limit <= n else None
    numbers = np.arange(n) if part is None else np.arange(part, dtype=np.int64) * n // part
    sequences = np.asarray(ids[numbers[:, None] * context + np.arange(context + 1)], dtype=np.int64)
    left = np.asarray(ids[n * context :], dtype=np.int64) if part is None and predicted > n * context else None
    text = Text(name=name, sequences=sequences, rest=left)
    return Text(
        name=name, sequences=sequences, rest=left,
        nbytes=None if nbytes is None else nbytes * text.tokens / predicted,
    )  # fmt: skip


def of_batches(
    batches: Batches,
    updates: range,
    limit: int | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    name: str = "batches",
) -> Text:
    """The batches of these updates, at most `limit` sequences of them, the first ones.

    tokenizer  tells the bytes of ids where it is byte-level
    """
    if not updates:
        raise UsageError("no update was named whose batch is to be evaluated")
    parts: list[NDArray[np.int64]] = []
    for t in updates:
        parts.append(batches.rows(t))
        if limit is not None and sum(map(len, parts)) >= limit:
            break
    sequences = np.concatenate(parts)[:limit]
    sizes = token_bytes(tokenizer) if tokenizer is not None else None
    inside = sizes is not None and int(sequences.max()) < len(sizes)
    return Text(
        name=name,
        sequences=sequences,
        nbytes=float(sizes[sequences[:, 1:]].sum()) if sizes is not None and inside else None,
    )


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> NDArray[np.int64] | None:
    """The bytes of text that each id stands for, int64 [ids]; of special tokens 0. None for a tokenizer that is not
    byte-level: elsewhere an id's text depends on its neighbours.

    A byte-level vocabulary writes each byte as one character (GPT-2's bytes_to_unicode).
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or type(backend.decoder).__name__ != "ByteLevel":
        return None
    sizes = np.zeros(max(tokenizer.get_vocab().values()) + 1, dtype=np.int64)
    for token, number in backend.get_vocab(with_added_tokens=False).items():
        sizes[number] = len(token)
    for number, added in backend.get_added_tokens_decoder().items():
        sizes[number] = 0 if added.special else len(added.content.encode())
    return sizes


def _known(nbytes: float) -> float | None:
    return None if np.isnan(nbytes) else float(nbytes)
