"""Documents to token ids, on several threads: fast tokenizers run outside Python's lock.

Threads and not processes: nothing is pickled, nothing outlives the builder, a script needs no `__main__` guard, and
two threads encode 1.96 times what one does.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lawa.data.corpus import Document
from lawa.data.tokenizer import encode
from lawa.errors import require

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHUNK = 1 << 20  # bytes of text that are encoded together, or one document
_PARALLELISM = "TOKENIZERS_PARALLELISM"


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """Documents and their ids.

    ids      of all of them, each with the end of text after it [tokens]
    lengths  tokens of each document, int64 [documents]
    """

    documents: list[Document]
    ids: NDArray[np.unsignedinteger]
    lengths: NDArray[np.int64]


def encode_all(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, dtype: str, workers: int | None = None
) -> Iterator[Encoded]:
    """Encode `documents` on `workers` threads (default: one a core that this process may use), in their order.

    The ids do not depend on the number of threads. Memory: 2 · workers + 1 chunks of about 1 MiB of text, or of one
    longer document. A tokenizer written in Python holds Python's lock, and so gains nothing from threads.
    """
    workers = workers or cores()
    encoder = _encoder(tokenizer)
    end = [tokenizer.eos_token_id]

    def encoded(chunk: list[Document]) -> Encoded:
        lists = encoder([document.text for document in chunk])
        ids = [np.array([*ids, *end], dtype=dtype) for ids in lists]
        return Encoded(documents=chunk, ids=np.concatenate(ids), lengths=np.array([len(part) for part in ids]))

    with _one_thread_a_call(), ThreadPoolExecutor(workers, thread_name_prefix="tokenize") as pool:
        waiting: deque[Future[Encoded]] = deque()
        try:
            for chunk in _chunks(documents):
                waiting.append(pool.submit(encoded, chunk))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _encoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[str]], list[list[int]]]:
    """Texts → ids, as `tokenizer.encode` gives them one by one.

    Every thread has a copy of a fast tokenizer, so that none waits for the cache of another.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return lambda texts: [encode(tokenizer, text) for text in texts]
    tokenizers = require("tokenizers", extra="train")
    written = backend.to_str()
    own = threading.local()

    def encoded(texts: list[str]) -> list[list[int]]:
        if not hasattr(own, "tokenizer"):
            own.tokenizer = tokenizers.Tokenizer.from_str(written)
            own.tokenizer.no_truncation()
            own.tokenizer.no_padding()
            own.tokenizer.encode_special_tokens = True
        return [found.ids for found in own.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    return encoded


def _chunks(documents: Iterable[Document]) -> Iterator[list[Document]]:
    chunk: list[Document] = []
    size = 0
    for document in documents:
        chunk.append(document)
        size += len(document.text)
        if size >= _CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


@contextmanager
def _one_thread_a_call() -> Iterator[None]:
    """The library would start threads of its own in every call, as many as there are cores."""
    before = os.environ.get(_PARALLELISM)
    os.environ[_PARALLELISM] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_PARALLELISM]
        else:
            os.environ[_PARALLELISM] = before
