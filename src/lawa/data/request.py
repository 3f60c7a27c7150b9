"""What a token store is asked to hold, comparable with what an existing one was built from without reading it all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Required, TypedDict, Unpack

from lawa.data.corpus import Corpus, Texts
from lawa.data.dataset import Dataset
from lawa.data.files import StrPath, compare
from lawa.data.megatron import Megatron, open_megatron
from lawa.data.sources import DatasetSource, MegatronSource, Source, TextSource
from lawa.data.tokenizer import fingerprint
from lawa.errors import LawaError

SPLITS = ("train", "validation")


class Text(TypedDict, total=False):
    """The keywords that say which text a store holds, and as which tokens.

    sources              name → source of the training text
    validation           the same for validation; or
    validation_fraction  of `sources`, held out by document with `seed` (default 0)
    tokenizer            a given one: a tokenizer.json, a folder, a name on the hub; or
    vocab_size           of one that is trained on the training documents
    """

    sources: Required[Mapping[str, Source]]
    validation: Mapping[str, Source] | None
    validation_fraction: float | None
    tokenizer: StrPath | None
    vocab_size: int | None
    seed: int


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request whose sources are there; of the text nothing has been read.

    given       split → source → what is read for it; validation is empty when it is held out
    weights     split → source → weight
    fraction    held out of every training source, where validation is not given
    tokenizer   the given tokenizer, or None
    vocab_size  of the tokenizer to train, where none is given
    """

    given: dict[str, dict[str, Corpus | Megatron]]
    weights: dict[str, dict[str, float]]
    fraction: float | None
    seed: int
    tokenizer: StrPath | None
    vocab_size: int | None

    @property
    def record(self) -> dict[str, dict[str, Any]]:
        """Part ("train.NAME", "validation", "tokenizer") → field → value: what makes two requests the same."""
        record = {
            f"{split}.{name}": {"megatron": str(given.prefix)} if isinstance(given, Megatron) else given.record
            for split, sources in self.given.items()
            for name, given in sources.items()
        }
        held_out = {} if self.fraction is None else {"fraction": self.fraction, "seed": self.seed}
        given = {"vocab_size": self.vocab_size} if self.tokenizer is None else {"given": fingerprint(self.tokenizer)}
        return {**record, "validation": held_out, "tokenizer": given}

    def differences(
        self, record: Mapping[str, Mapping[str, Any]], files: Callable[[str], Iterable[Mapping[str, Any]]]
    ) -> list[str]:
        """In words, what differs from the store with this `record` and these `files` of a part; [] when nothing does.

        Files whose size and time of change are as they were are not read.
        """
        mine = self.record
        found = []
        for part in sorted(record.keys() | mine.keys()):
            if part not in record or part not in mine:
                found.append(f"{part} is only {'there' if part in record else 'here'}")
                continue
            for field in sorted(record[part].keys() | mine[part].keys()):
                there, here = record[part].get(field), mine[part].get(field)
                if there != here:
                    found.append(f"{part}.{field} is {_short(there)} there and {_short(here)} here")
        for split, sources in self.given.items():
            for name, given in sources.items():
                part = f"{split}.{name}"
                if part in record and not isinstance(given, Megatron):  # whose files are compared on opening
                    only_there, only_here = compare(files(part), given.files)
                    found += [f"text of {part} only there: {_names(only_there)}"] if only_there else []
                    found += [f"text of {part} only here: {_names(only_here)}"] if only_here else []
        return found


def look(**text: Unpack[Text]) -> Request:
    """Find the sources. Raises LawaError for one that is not there, and for too few or too many keywords."""
    validation, fraction = text.get("validation"), text.get("validation_fraction")
    if (validation is None) == (fraction is None):
        raise LawaError(
            "the validation text is either named (validation) or held out (validation_fraction); set one of the two"
        )
    if fraction is not None and not 0 < fraction < 1:
        raise LawaError(f"validation_fraction is {fraction}; it must lie between 0 and 1")
    tokenizer, vocab_size = text.get("tokenizer"), text.get("vocab_size")
    if (tokenizer is None) == (vocab_size is None):
        raise LawaError(
            "the tokenizer is either given (tokenizer) or trained to a size (vocab_size); set one of the two"
        )
    sides = {"train": text["sources"], "validation": validation or {}}
    every = [source for side in sides.values() for source in side.values()]
    if tokenizer is None and any(isinstance(source, MegatronSource) for source in every):
        raise LawaError("Megatron's token files need the tokenizer that made them; give it (tokenizer)")
    weights = {
        split: {name: side[name].weight for name in sorted(side)}
        for split, side in zip(SPLITS, (sides["train"], validation or sides["train"]), strict=True)
    }
    return Request(
        given={split: {name: _open(side[name]) for name in sorted(side)} for split, side in sides.items()},
        weights=weights,
        fraction=fraction,
        seed=text.get("seed", 0),
        tokenizer=tokenizer,
        vocab_size=vocab_size,
    )


def _open(source: Source) -> Corpus | Megatron:
    match source:
        case TextSource():
            return Texts(source)
        case DatasetSource():
            return Dataset(source)
        case MegatronSource():
            return open_megatron(source.megatron)


def _short(value: object) -> str:
    """A value as an error shows it; of a digest its first digits."""
    text = "not set" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:19]}…"


def _names(texts: list[str]) -> str:
    first, *others = sorted(texts)
    return f"{first} and {len(others)} more" if others else first
