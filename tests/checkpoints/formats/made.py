"""Tiny models of transformers, what a catalog's byte ranges hold, and .bin checkpoints as the hub has them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from lawa.checkpoints.catalog import Catalog, Stored
from lawa.checkpoints.formats import catalog

State = dict[str, Tensor]


def neox(*, seed: int = 0, **settings: Any) -> GPTNeoXForCausalLM:
    torch.manual_seed(seed)
    config = GPTNeoXConfig(
        vocab_size=48, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
        max_position_embeddings=16, **settings,
    )  # fmt: skip
    return drawn(GPTNeoXForCausalLM(config))


def llama(*, tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16, tie_word_embeddings=tied,
    )  # fmt: skip
    return drawn(LlamaForCausalLM(config))


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(2)
    return drawn(GPT2LMHeadModel(GPT2Config(vocab_size=33, n_positions=8, n_embd=9, n_layer=1, n_head=3)))


MODELS = {"neox": neox, "llama": llama, "tied llama": lambda: llama(tied=True), "tied gpt2": gpt2}


def state_of(model: Any) -> State:
    """Under the names that checkpoints have: transformers 5 calls GPT-NeoX's output embedding otherwise in memory."""
    neox = isinstance(model, GPTNeoXForCausalLM)
    return {("embed_out.weight" if neox and name == "lm_head.weight" else name): tensor
            for name, tensor in model.state_dict().items()}  # fmt: skip


def drawn(model: Any) -> Any:
    """No parameter is constant, as transformers makes norms and biases."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def save_bin(directory: Path, model: PreTrainedModel, max_shard_size: int = 10**9, **how: Any) -> State:
    """As save_pretrained wrote .bin files before transformers 5: tied tensors under both names; what it wrote."""
    model.config.save_pretrained(directory)
    state = state_of(model)
    split = split_torch_state_dict_into_shards(
        state, filename_pattern="pytorch_model{suffix}.bin", max_shard_size=max_shard_size
    )
    shard_of = {id_of(state[name]): file for file, names in split.filename_to_tensors.items() for name in names}
    where = {name: shard_of[id_of(tensor)] for name, tensor in state.items()}
    for file in split.filename_to_tensors:
        torch.save({name: tensor for name, tensor in state.items() if where[name] == file}, directory / file, **how)
    if split.is_sharded:
        (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return state


def id_of(tensor: Tensor) -> int:
    return tensor.data_ptr()


def read(path: Path, scratch: Path) -> Catalog:
    """Its catalog; new scratch folders are made below `scratch`."""

    def folder() -> Path:
        made = scratch / f"scratch{len(list(scratch.glob('scratch*')))}"
        made.mkdir(parents=True)
        return made

    return catalog(path, scratch=folder)


def value(stored: Stored) -> Tensor:
    """The elements that lie in the byte range."""
    with stored.file.open("rb") as opened:
        opened.seek(stored.offset)
        read = bytearray(opened.read(stored.nbytes))
    assert len(read) == stored.nbytes
    dtype = getattr(torch, stored.dtype)
    return (torch.frombuffer(read, dtype=dtype) if read else torch.empty(0, dtype=dtype)).reshape(stored.shape)


def check_holds(found: Catalog, expected: Mapping[str, Tensor]) -> None:
    """Exactly these tensors: names, dtypes, shapes, bits."""
    assert found.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        stored = found.tensors[name]
        assert (stored.dtype, stored.shape) == (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)), name
        assert torch.equal(bits(value(stored)), bits(tensor)), name


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
