"""What a run reads: the batches it trains on and the sequences it is evaluated on.

From a token store, in the driver's own order, or as batches that lie in an order given by others (data.batches).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lawa.data import store as token_store
from lawa.data import tokenizer as tokenizers
from lawa.data.batches import Batches, open_batches
from lawa.data.order import Order, batch, validation_sequences
from lawa.data.store import Progress, TokenStore, open_store
from lawa.errors import LawaError
from lawa.pretrain.config import Config
from lawa.pretrain.directory import STORE
from lawa.pretrain.ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class Text:
    """
    batch        of update t, or some of its rows: int64 [rows, context + 1]
    validation   the held-out sequences, int64 [n, context + 1]
    vocab_size   rows that an embedding needs
    end_of_text  its id; None where nobody has told it
    digest       of the tokens: what a resumed run compares
    tokenizer    writes the tokenizer's files into a folder
    described    for run.json
    told         in words
    epochs       {source: how many times so many updates read it}
    """

    batch: Callable[[int, slice | None], NDArray[np.int64]]
    validation: NDArray[np.int64]
    vocab_size: int
    end_of_text: int | None
    digest: str
    tokenizer: Callable[[Path], None]
    described: dict[str, Any]
    told: str
    epochs: Callable[[int], dict[str, float]]


def store_path(config: Config, run: Path) -> Path:
    return Path(config.data.store) if config.data.store else run / STORE


def open_text(config: Config, run: Path, ranks: Ranks, *, progress: Progress | None = None) -> Text:
    """Opened, or (a token store) made of the text first: the main process does it for all."""
    with ranks.main_first():
        if config.data.batches:
            return _in_given_order(config)
        return _in_own_order(config, _store(config, run, progress))


def open_again(config: Config, run: Path, digest: str) -> Text:
    """What a run began with, whose digest it was; the text that a store was made of is not needed.

    Raises LawaError where it holds other tokens now.
    """
    text = (
        _in_given_order(config) if config.data.batches else _in_own_order(config, open_store(store_path(config, run)))
    )
    if text.digest != digest:
        where, what = ("data.batches", "files") if config.data.batches else (store_path(config, run), "store")
        raise LawaError(
            f"{where} holds other tokens than the run began with (digest {text.digest[:12]}…, not {digest[:12]}…); "
            f"put its own {what} back, or start anew"
        )
    return text


def _store(config: Config, run: Path, progress: Progress | None) -> TokenStore:
    data = config.data
    if not data.sources:
        return open_store(store_path(config, run))
    return token_store.build_or_open(
        store_path(config, run),
        workers=data.workers,
        progress=progress,
        sources=data.sources,
        validation=data.validation_sources,
        validation_fraction=None if data.validation else data.validation_fraction,
        tokenizer=data.tokenizer,
        vocab_size=None if data.tokenizer else data.vocab_size,
        seed=data.seed,
    )


def _in_own_order(config: Config, store: TokenStore) -> Text:
    data = config.data
    weights = data.weights or store.weights
    order = Order.over(
        store.train, weights["train"], context=data.context, batch=config.training.batch, seed=config.seed
    )
    return Text(
        batch=partial(batch, store.train, order),
        validation=_of_store(config, store),
        vocab_size=store.vocab_size,
        end_of_text=store.end_of_text,
        digest=store.digest,
        tokenizer=partial(_copy, store.tokenizer_path),
        described=store.info["splits"],
        told=(
            f"{store.train_tokens:,} tokens, vocabulary {store.vocab_size:,}; "
            f"held out {store.validation_tokens:,} tokens"
        ),
        epochs=order.epochs,
    )


def _in_given_order(config: Config) -> Text:
    data, training = config.data, config.training
    assert data.batches is not None
    batches = open_batches(data.batches)
    for name, theirs, ours in (("data.context", batches.context, data.context),
                               ("training.batch", batches.batch, training.batch)):  # fmt: skip
        if theirs != ours:
            raise LawaError(f"{name}={ours}, and data.batches has {theirs}; set {name} to that")
    missing = next((t for t in (training.start + 1, training.updates) if t not in batches.updates), None)
    if missing is not None:
        raise LawaError(
            f"data.batches has no batch of update {missing}: it has those of {_some(batches.updates)}; change "
            "training.start and training.updates, or fetch them"
        )
    store = open_store(Path(data.store)) if data.store else None
    validation, held_out = (_of_store(config, store), f"of {data.store}") if store else _of_batches(config, batches)
    given = tokenizers.load(data.tokenizer) if data.tokenizer else None
    highest = int(validation.max()) if len(validation) else 0
    if highest >= data.vocab_size:
        raise LawaError(f"the held-out text has the id {highest}, and data.vocab_size is {data.vocab_size}; raise it")
    return Text(
        batch=batches.rows,
        validation=validation,
        vocab_size=data.vocab_size,
        end_of_text=store.end_of_text if store else getattr(given, "eos_token_id", None),
        digest=batches.digest,
        tokenizer=partial(_copy, store.tokenizer_path) if store else partial(_save, given),
        described={"batches": batches.describe(), "held_out": held_out},
        told=(
            f"batches in a given order ({next(iter(data.batches))}); held out {len(validation):,} sequences {held_out}"
        ),
        epochs=lambda updates: {},
    )


def _of_store(config: Config, store: TokenStore) -> NDArray[np.int64]:
    weights = config.data.weights or store.weights
    return validation_sequences(
        store.validation, config.data.context, config.evaluation.sequences, weights["validation"]
    )


def _of_batches(config: Config, batches: Batches) -> tuple[NDArray[np.int64], str]:
    """The first sequences of the batches from data.held_out on, which nothing that is compared has read."""
    first = config.data.held_out if config.data.held_out is not None else config.training.updates + 1
    wanted = config.evaluation.sequences or batches.batch
    needed = range(first, first - (-wanted // batches.batch))
    missing = next((t for t in needed if t not in batches.updates), None)
    if missing is not None:
        raise LawaError(
            f"the batch of update {missing} is to be held out, and data.batches has those of {_some(batches.updates)}; "
            "lower evaluation.sequences, set data.held_out, or name a data.store with validation text"
        )
    rows = np.concatenate([batches.rows(t) for t in needed])[:wanted]
    return rows, f"of the batches from update {first} on"


def _copy(source: Path, directory: Path) -> None:
    for file in source.iterdir():
        shutil.copy(file, directory / file.name)


def _save(tokenizer: Any, directory: Path) -> None:
    """Ids may come without a tokenizer."""
    if tokenizer is not None:
        tokenizer.save_pretrained(directory)


def _some(updates: range) -> str:
    return f"{updates[0]} … {updates[-1]}" if len(updates) else "none"
