"""What belongs to a model beside its weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from lawa.checkpoints.carry import home_of, is_beside


@pytest.mark.parametrize(
    ("name", "belongs"),
    [
        ("config.json", True), ("tokenizer.model", True), ("qwen.tiktoken", True), ("sentencepiece.bpe.model", True),
        ("vocab.txt", True), ("modeling_own.py", True), ("chat_template.jinja", True),
        ("model.safetensors", False), ("README.md", False), ("optimizer.pt", False), ("reward.model", False),
    ],
)  # fmt: skip
def test_what_is_carried(name: str, belongs: bool) -> None:
    assert is_beside(name) == belongs


def test_a_configuration_lies_in_the_checkpoint_or_beside_it(tmp_path: Path) -> None:
    checkpoint = tmp_path / "model" / "weights.pt"
    checkpoint.parent.mkdir()
    assert home_of(checkpoint) is None
    (tmp_path / "config.json").touch()
    assert home_of(checkpoint.parent) == tmp_path
    (checkpoint.parent / "config.json").touch()
    assert home_of(checkpoint) == home_of(checkpoint.parent) == checkpoint.parent
