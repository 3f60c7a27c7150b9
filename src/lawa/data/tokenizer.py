"""The tokenizer: a byte-level BPE trained here, or a given one. Both know their end-of-text token."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lawa.checkpoints.publish import sha256
from lawa.errors import LawaError, require

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
SMALLEST_VOCABULARY = 257  # every byte, and the end of text

_PIECE = 1 << 18  # characters handed to the trainer at once, which collects 256 pieces before it counts
_BOUNDARY = re.compile(r"(?<=\S)[ \n]")  # the pre-tokenizer always ends a word here
_FILES = ("tokenizer*", "vocab*", "merges*", "added_tokens*", "special_tokens*", "*.model")  # of any tokenizer


def train(texts: Iterable[str], vocab_size: int, end_of_text: str = END_OF_TEXT) -> PreTrainedTokenizerFast:
    """A byte-level BPE (GPT-2's pre-tokenization, no normalization) trained on `texts`.

    Any text survives encoding and decoding unchanged. Id 0 is `end_of_text`, ids 1 … 256 are the bytes; the
    same texts give the same tokenizer. A text with too few repeated words ends with fewer than `vocab_size`
    tokens. Memory grows with the number of different words, not with the text. Raises LawaError for a
    vocab_size under 257.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise LawaError(
            f"vocab_size is {vocab_size}; a byte-level tokenizer needs at least {SMALLEST_VOCABULARY}: "
            "256 bytes and the end of text"
        )
    tokenizers = require("tokenizers", extra="train")
    transformers = require("transformers", extra="train")
    byte_level = tokenizers.pre_tokenizers.ByteLevel
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = byte_level(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[end_of_text],
        initial_alphabet=sorted(byte_level.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator((piece for text in texts for piece in _pieces(text)), trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=end_of_text, eos_token=end_of_text)


def load(path_or_name: str | os.PathLike[str]) -> PreTrainedTokenizerBase:
    """A given tokenizer: a `tokenizer.json`, a folder that transformers can read, or a name on the hub.

    Where none is declared, `<|endoftext|>` is the end of text if the vocabulary has it. Raises LawaError when
    nothing can be read there, and when the tokenizer has no end-of-text token.
    """
    transformers = require("transformers", extra="train")
    path = Path(path_or_name)
    try:
        if path.is_file():
            tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path))
        else:
            tokenizer = transformers.AutoTokenizer.from_pretrained(str(path_or_name))
    except Exception as failed:  # tokenizers raises bare Exception, transformers OSError, ValueError and others
        raise LawaError(
            f"no tokenizer could be read from {path_or_name} ({_first_line(failed)}); give a tokenizer.json, "
            "a folder with a tokenizer, or a name on the Hugging Face hub"
        ) from failed
    if tokenizer.eos_token_id is None and END_OF_TEXT in tokenizer.get_vocab():
        tokenizer.eos_token = END_OF_TEXT
    if tokenizer.eos_token_id is None:
        raise LawaError(
            f"the tokenizer {path_or_name} declares no end-of-text token, which must follow every document; "
            "name it as eos_token in the tokenizer_config.json beside its tokenizer.json, and give that folder"
        )
    return tokenizer


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of `text` alone: nothing added, and a special token's spelling in the text is read as text."""
    encoded = tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False, verbose=False
    )
    return encoded["input_ids"]  # pyright: ignore[reportReturnType]


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Rows an embedding needs: the largest id + 1 (a vocabulary may have gaps)."""
    return max(tokenizer.get_vocab().values()) + 1


def fingerprint(path_or_name: str | os.PathLike[str]) -> str:
    """What a given tokenizer is recognised by, without loading it: its files' SHA-256, or its name on the hub."""
    path = Path(path_or_name)
    if not path.exists():
        return str(path_or_name)
    files = {path} if path.is_file() else {file for pattern in _FILES for file in path.glob(pattern)}
    lines = "".join(f"{sha256(file)}  {file.name}\n" for file in sorted(files) if file.is_file())
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


def _pieces(text: str) -> Iterator[str]:
    """`text` in pieces of about _PIECE characters, cut where the pre-tokenizer cuts in any case.

    Its pattern starts a new word at every blank or line end that follows no white space, and never looks
    back: so the words, and with them the trained tokenizer, are those of the whole text.
    """
    start = 0
    while start < len(text):
        boundary = _BOUNDARY.search(text, start + _PIECE)
        end = boundary.start() if boundary else len(text)
        yield text[start:end]
        start = end


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")
