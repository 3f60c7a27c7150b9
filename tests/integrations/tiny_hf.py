"""A tiny language model of transformers, random tokens, and trainers of it that write nothing but what is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback

import twins
from lawa.averaging.matching import canonical

Weights = dict[str, np.ndarray]
VOCABULARY = 32
QUIET: dict[str, Any] = {
    "use_cpu": True, "report_to": "none", "disable_tqdm": True, "log_level": "error", "dataloader_pin_memory": False,
    "per_device_train_batch_size": 2, "per_device_eval_batch_size": 4, "max_steps": 6, "save_strategy": "no",
    "learning_rate": 1e-2,
}  # fmt: skip


def model(**settings: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16, tie_word_embeddings=True, **settings,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def tokenizer() -> PreTrainedTokenizerFast:
    words = {f"w{i}": i for i in range(VOCABULARY - 2)} | {"<unk>": VOCABULARY - 2, "<end>": VOCABULARY - 1}
    made = Tokenizer(WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token="<end>", pad_token="<end>")


def tokens(rows: int, seed: int = 1, **columns: str) -> Dataset:
    """Column input_ids, and `labels` alike."""
    drawn = np.random.default_rng(seed).integers(0, VOCABULARY - 2, (rows, 8)).tolist()
    return Dataset.from_dict({"input_ids": drawn, "labels": drawn})


def weights(module: torch.nn.Module) -> Weights:
    return {canonical(name): twins.array(parameter) for name, parameter in module.named_parameters()}


def same(left: Weights, right: Weights) -> bool:
    return left.keys() == right.keys() and all(twins.same_bits(left[name], right[name]) for name in left)


def mean(held: list[Weights]) -> Weights:
    """The uniform average, by hand."""
    return {name: twins.uniform([one[name] for one in held]) for name in held[0]}


class Notes(TrainerCallback):
    """The weights that each update begins with and ends with, by its number."""

    def __init__(self) -> None:
        self.begun: dict[int, Weights] = {}
        self.ended: dict[int, Weights] = {}

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begun[state.global_step + 1] = weights(kwargs["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ended[state.global_step] = weights(kwargs["model"])


def checkpoints(output: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in output.glob("checkpoint-*"))
