"""A small model with a byte-level tokenizer, as directories that from_pretrained reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from lawa.data.tokenizer import train

TEXT = "The quick brown fox jumps over the lazy dog, and the lazy dog sleeps in the sun. " * 4


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return train([TEXT], 280)


@pytest.fixture(scope="session")
def config() -> GPTNeoXConfig:
    return GPTNeoXConfig(
        vocab_size=280, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip


@pytest.fixture
def checkpoints(tmp_path: Path, tokenizer, config) -> Callable[..., list[Path]]:
    """Writes `count` checkpoints of a run, step100, step200, …, whose weights wander."""

    def write(count: int = 3, *, dtype: torch.dtype = torch.float32, folder: str = "run") -> list[Path]:
        torch.manual_seed(0)
        model = GPTNeoXForCausalLM(config)
        paths = []
        for number in range(1, count + 1):
            for parameter in model.parameters():
                parameter.data += torch.randn_like(parameter) * 0.1
            paths.append(tmp_path / folder / f"step{number * 100}")
            GPTNeoXForCausalLM.from_pretrained(
                None, config=config, state_dict=model.state_dict(), dtype=dtype
            ).save_pretrained(paths[-1])
            tokenizer.save_pretrained(paths[-1])
        return paths

    return write


@pytest.fixture
def book(tmp_path: Path) -> Path:
    file = tmp_path / "book.txt"
    file.write_text(TEXT + "Grüße, €5.\n", encoding="utf-8")
    return file
