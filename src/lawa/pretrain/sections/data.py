"""The settings of the text, its tokens and its sequences."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from lawa.errors import UsageError
from lawa.pretrain.settings import check_at_least, check_seed, required, setting


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The text, its tokenizer, and the sequences made of it."""

    train: list[str] = required(
        "text files or folders of .txt files; one file is one document, and there must be two or more of them unless "
        "data.validation is given"
    )
    validation: list[str] | None = setting(None, "text held out; without it, validation_fraction of the documents is")
    validation_fraction: float = setting(0.05, "the share of the text, by whole documents, that is held out")
    tokenizer: str | None = setting(None, "a tokenizer.json, a folder or a hub name; without it, one is trained")
    vocab_size: int = setting(4096, "of the tokenizer that is trained")
    context: int = setting(1024, "tokens a sequence")
    seed: int = setting(0, "of the choice of held-out documents; runs that are compared share it")
    store: str | None = setting(None, "where the tokenized text is kept and found again; default: RUN/store")

    def __post_init__(self) -> None:
        if not self.train:
            raise UsageError("data.train is empty; name text files or folders")
        check_at_least(self, "data", 1, "context")
        check_at_least(self, "data", 257, "vocab_size")
        check_seed("data.seed", self.seed)
        if not 0 < self.validation_fraction < 1:
            raise UsageError(f"data.validation_fraction={self.validation_fraction} must lie between 0 and 1")

    def absolute(self) -> DataConfig:
        """The same with absolute paths, which mean the same wherever a run is gone on with."""

        def absolutes(paths: list[str]) -> list[str]:
            return [str(Path(path).absolute()) for path in paths]

        local = self.tokenizer is not None and Path(self.tokenizer).exists()  # and not a name on the hub
        return dataclasses.replace(
            self,
            train=absolutes(self.train),
            validation=absolutes(self.validation) if self.validation else self.validation,
            tokenizer=str(Path(self.tokenizer).absolute()) if self.tokenizer and local else self.tokenizer,
            store=str(Path(self.store).absolute()) if self.store else self.store,
        )
