"""What a token store is asked to hold: read, split, and comparable with what an existing one was built from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Required, TypedDict, Unpack

from lawa.data import corpus
from lawa.data.corpus import Document, StrPath
from lawa.data.tokenizer import fingerprint
from lawa.errors import LawaError


class Text(TypedDict, total=False):
    """The keywords that say which text a store holds, and as which tokens.

    sources              text files, and folders of *.txt files
    validation           the same for validation; or
    validation_fraction  of the bytes of `sources`, held out by document with `seed` (default 0)
    tokenizer            a given one: a tokenizer.json, a folder, a name on the hub; or
    vocab_size           of one that is trained on the training documents
    """

    sources: Required[StrPath | Sequence[StrPath]]
    validation: StrPath | Sequence[StrPath] | None
    validation_fraction: float | None
    tokenizer: StrPath | None
    vocab_size: int | None
    seed: int


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request whose text has been read through and split.

    documents   split ("train", "validation") → its documents
    tokenizer   the given tokenizer, or None
    vocab_size  of the tokenizer to train, where none is given
    record      part ("sources", "validation", "tokenizer") → field → value: what makes two requests the same
    """

    documents: dict[str, list[Document]]
    tokenizer: StrPath | None
    vocab_size: int | None
    record: dict[str, dict[str, Any]]

    def differences(
        self, record: dict[str, dict[str, Any]], documents: Callable[[], Iterable[dict[str, Any]]]
    ) -> list[str]:
        """In words, what differs from the store with this `record` and these `documents`; [] when nothing does."""
        found = []
        for part, fields in self.record.items():
            for field in sorted(record[part].keys() | fields.keys()):
                there, here = record[part].get(field), fields.get(field)
                if there != here:
                    found.append(f"{part}.{field} is {_short(there)} there and {_short(here)} here")
        if found:
            there = {(document["name"], document["sha256"]) for document in documents()}
            here = {(document.name, document.sha256) for side in self.documents.values() for document in side}
            found += [f"text only there: {_names(there - here)}"] if there - here else []
            found += [f"text only here: {_names(here - there)}"] if here - there else []
        return found


def read(**text: Unpack[Text]) -> Request:
    """Read the text through and split it. Raises LawaError as `corpus` does, and for too few or many keywords."""
    validation, fraction = text.get("validation"), text.get("validation_fraction")
    if (validation is None) == (fraction is None):
        raise LawaError(
            "the validation text is either named (validation) or held out (validation_fraction); set one of the two"
        )
    tokenizer, vocab_size = text.get("tokenizer"), text.get("vocab_size")
    if (tokenizer is None) == (vocab_size is None):
        raise LawaError(
            "the tokenizer is either given (tokenizer) or trained to a size (vocab_size); set one of the two"
        )
    training = corpus.documents(text["sources"])
    record: dict[str, dict[str, Any]] = {"sources": _summary(training)}
    if fraction is not None:
        seed = text.get("seed", 0)
        training, held_out = corpus.split(training, fraction=fraction, seed=seed)
        record["validation"] = {"fraction": fraction, "seed": seed}
    else:
        held_out = corpus.documents(validation or ())
        corpus.refuse_overlap(training, held_out)
        record["validation"] = _summary(held_out)
    record["tokenizer"] = {"vocab_size": vocab_size} if tokenizer is None else {"given": fingerprint(tokenizer)}
    return Request(
        documents={"train": training, "validation": held_out},
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        record=record,
    )


def _summary(documents: Sequence[Document]) -> dict[str, Any]:
    return {
        "documents": len(documents),
        "bytes": sum(document.bytes for document in documents),
        "sha256": corpus.digest(documents),
    }


def _short(value: object) -> str:
    """A value as an error shows it; of a digest its first digits."""
    text = "not set" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:19]}…"


def _names(texts: Iterable[tuple[str, str]]) -> str:
    first, *others = sorted(name for name, _ in texts)
    return f"{first} and {len(others)} more" if others else first
