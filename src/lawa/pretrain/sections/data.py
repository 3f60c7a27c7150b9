"""The settings of the text, its tokens and its sequences."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lawa.data import batches
from lawa.data.sources import KINDS, NAMELESS, MegatronSource, Source, TextSource, absolute, check
from lawa.errors import UsageError
from lawa.settings import build, check_at_least, check_seed, setting

Sources = list[str] | dict[str, Any] | None  # paths, or source → its settings


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The text, its tokenizer, and the sequences made of it."""

    train: list[str] | dict[str, Any] | None = setting(
        None,
        "text files (one is one document), JSONL files, or folders of .txt, .jsonl and .jsonl.gz files; or several "
        "sources by name, each with a weight and either paths, dataset (of the datasets package) or megatron (a prefix "
        "of .bin and .idx); may be left out with a data.store that is there",
    )
    validation: list[str] | dict[str, Any] | None = setting(
        None, "text held out, given as data.train is; without it, validation_fraction of the documents is"
    )
    batches: dict[str, Any] | None = setting(
        None,
        "in place of text: batches that lie in a given order, {preshuffled: {…}}, {documents: …}, {chunks: …}, "
        "{indices: …} or {run: …}, as docs/branching.md tells; with them data.store gives validation text alone",
    )
    held_out: int | None = setting(
        None, "with data.batches: held out are the batches from this update on; default: from the run's end on"
    )
    validation_fraction: float = setting(0.05, "the share of the text, by whole documents, that is held out")
    tokenizer: str | None = setting(None, "a tokenizer.json, a folder or a hub name; without it, one is trained")
    vocab_size: int = setting(4096, "of the tokenizer that is trained; with data.batches: ids are below it")
    context: int = setting(1024, "tokens a sequence")
    seed: int = setting(0, "of the choice of held-out documents; runs that are compared share it")
    store: str | None = setting(None, "where the tokenized text is kept and found again; default: RUN/store")
    workers: int | None = setting(None, "threads that tokenize; default: one a core")

    def __post_init__(self) -> None:
        if self.train is None and self.store is None and self.batches is None:
            raise UsageError("data.train is not set; name text files, folders or sources, or a data.store to read from")
        if self.batches is not None and (self.train is not None or self.validation is not None):
            raise UsageError("data.batches takes the place of data.train and data.validation; remove one of them")
        if self.held_out is not None and (self.batches is None or self.store is not None):
            raise UsageError("data.held_out names updates of data.batches, where no data.store has validation text")
        if self.train is None and self.validation is not None:
            raise UsageError("data.validation needs data.train; a data.store alone has validation text of its own")
        every = [*self.sources.values(), *(self.validation_sources or {}).values()]  # checked where they are made
        if self.tokenizer is None and any(isinstance(source, MegatronSource) for source in every):
            raise UsageError("Megatron's token files need data.tokenizer: the one that made them")
        check_at_least(self, "data", 1, "context", "workers")
        check_at_least(self, "data", 257 if self.batches is None else 1, "vocab_size")
        check_at_least(self, "data", 1, "held_out")
        check_seed("data.seed", self.seed)
        if not 0 < self.validation_fraction < 1:
            raise UsageError(f"data.validation_fraction={self.validation_fraction} must lie between 0 and 1")

    @property
    def sources(self) -> dict[str, Source]:
        """The training sources by name; {} when the store is all that is given."""
        return {} if self.train is None else _sources(self.train, "data.train")

    @property
    def validation_sources(self) -> dict[str, Source] | None:
        """The validation sources by name; None when validation text is held out."""
        return None if self.validation is None else _sources(self.validation, "data.validation")

    @property
    def weights(self) -> dict[str, dict[str, float]]:
        """Split → source → weight; {} when the store is all that is given."""
        if self.train is None:
            return {}
        sides = {"train": self.sources, "validation": self.validation_sources or self.sources}
        return {split: {name: source.weight for name, source in side.items()} for split, side in sides.items()}

    def absolute(self) -> DataConfig:
        """The same with absolute paths, which mean the same wherever a run is gone on with."""
        local = self.tokenizer is not None and Path(self.tokenizer).exists()  # and not a name on the hub
        return dataclasses.replace(
            self,
            train=_absolute(self.train, self.sources),
            validation=_absolute(self.validation, self.validation_sources),
            tokenizer=str(Path(self.tokenizer).absolute()) if self.tokenizer and local else self.tokenizer,
            batches=batches.absolute(self.batches) if self.batches else None,
            store=str(Path(self.store).absolute()) if self.store else self.store,
        )


def _sources(given: list[str] | dict[str, Any], path: str) -> dict[str, Source]:
    """The sources that a setting describes, by name; UsageError names what is wrong with one."""
    if isinstance(given, list):
        sources: dict[str, Source] = {NAMELESS: TextSource(paths=given)} if given else {}
    else:
        sources = {name: _source(values, f"{path}.{name}") for name, values in given.items()}
    check(sources, path)
    return sources


def _source(values: object, path: str) -> Source:
    if not isinstance(values, Mapping):
        raise UsageError(f"{path} must be a mapping with one of {', '.join(KINDS)}, not {values!r}")
    kinds = [kind for kind in KINDS if kind in values]
    if len(kinds) != 1:
        raise UsageError(f"{path} must have exactly one of {', '.join(KINDS)}; it has {', '.join(map(str, values))}")
    return build(KINDS[kinds[0]], values, path)


def _absolute(given: Sources, sources: dict[str, Source] | None) -> Sources:
    if isinstance(given, list):
        return [str(Path(path).absolute()) for path in given]
    return {name: absolute(source) for name, source in sources.items()} if given and sources else None
