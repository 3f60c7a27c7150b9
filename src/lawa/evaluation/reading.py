"""How each checkpoint reads: the model that it is, its tokenizer, and the texts as its tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lawa.checkpoints.carry import CONFIG, home_of
from lawa.checkpoints.publish import sha256
from lawa.checkpoints.select import Found
from lawa.data import tokenizer as tokenizers
from lawa.data.store import TokenStore, open_store
from lawa.errors import LawaError, UsageError
from lawa.evaluation import text as texts
from lawa.evaluation.asked import Asked
from lawa.evaluation.model import read_shape
from lawa.evaluation.text import Text

_LONGEST = 2048  # the default context of a model with more positions, or without a limit


class Reading:
    """Of checkpoints on this machine. What several share is read once."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self._shapes: dict[str, Any] = {}
        self._texts: dict[tuple[str, ...], Text] = {}
        self._agree: set[tuple[str, str]] = set()  # stores and tokenizers

    def shape(self, one: Found) -> Any:
        """transformers' configuration of its model."""
        source = self.asked.config or home(one)
        if source is None:
            raise LawaError(f"{one.label} has no {CONFIG}, which says what model it is; name one (--config)")
        if str(source) not in self._shapes:
            self._shapes[str(source)] = read_shape(source)
        return self._shapes[str(source)]

    def config_digest(self, one: Found) -> str | None:
        """SHA-256 of the config.json that is meant; a name on the hub stands for itself."""
        source = self.asked.config or home(one)
        if source is None:
            return None
        file = Path(source) / CONFIG if Path(source).is_dir() else Path(source)
        return sha256(file) if file.is_file() else str(source)

    def tokenizer(self, one: Found) -> str:
        """Where it is read from."""
        if (source := self._tokenizer(one)) is None:
            raise LawaError(f"{one.label} has no tokenizer beside it; name one (--tokenizer)")
        return source

    def texts(self, one: Found) -> Iterator[Text]:
        """Those that were asked for, in that order."""
        asked = self.asked
        if not (asked.texts or asked.batches):
            return
        context = self._context(one)
        for given in asked.texts:
            is_store = (Path(given) / "store.json").is_file()
            yield self._of_store(given, context, one) if is_store else self._of_files(given, context, one)
        for name, batches, updates in asked.batches:
            if (name,) not in self._texts:
                own = tokenizers.load(asked.tokenizer) if asked.tokenizer else None
                self._texts[name,] = texts.of_batches(batches, updates, asked.limit, tokenizer=own, name=name)
            yield self._texts[name,]

    def _of_store(self, given: str | Path, context: int, one: Found) -> Text:
        store, known = open_store(given), (str(given), str(context))
        self._check_ids(store, one)
        if known not in self._texts:
            self._texts[known] = texts.of_store(store, context, self.asked.limit)
        return self._texts[known]

    def _of_files(self, given: str | Path, context: int, one: Found) -> Text:
        source = self.tokenizer(one)
        known = (str(given), str(context), tokenizers.fingerprint(source))
        if known not in self._texts:
            self._texts[known] = texts.of_files([given], tokenizers.load(source), context, self.asked.limit)
        return self._texts[known]

    def _tokenizer(self, one: Found) -> str | None:
        """What was named, or lies beside the checkpoint, or beside the configuration that was named."""
        asked = self.asked
        config = Path(asked.config) if asked.config is not None else None
        beside = config.parent if config is not None and config.is_file() else config
        source = asked.tokenizer or home(one) or beside
        return None if source is None else str(source)

    def _context(self, one: Found) -> int:
        positions = getattr(self.shape(one), "max_position_embeddings", None)
        context = self.asked.context
        if context is None:
            return min(positions or _LONGEST, _LONGEST)
        if positions is not None and context > positions:
            raise UsageError(f"context={context} is longer than the {positions} positions of {one.label}; lower it")
        return context

    def _check_ids(self, store: TokenStore, one: Found) -> None:
        """Raise where the checkpoint has a tokenizer to which the store's ids mean other tokens."""
        source = self._tokenizer(one)
        known = (str(store.path), tokenizers.fingerprint(source) if source else "")
        if source is None or known in self._agree:
            return
        try:
            own = tokenizers.load(source).get_vocab()
        except LawaError:  # there is none
            return
        theirs = tokenizers.load(store.tokenizer_path).get_vocab()
        if any(own.get(token, number) != number for token, number in theirs.items()):
            raise LawaError(
                f"the ids in {store.path} are those of another tokenizer than {one.label} has; evaluate it on text "
                "files (--text FILE)"
            )
        self._agree.add(known)


def home(one: Found) -> Path | None:
    """Where its configuration and tokenizer lie."""
    return home_of(path_of(one))


def path_of(one: Found) -> Path:
    assert one.path is not None  # fetched
    return one.path
