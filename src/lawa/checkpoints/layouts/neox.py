"""GPT-NeoX: what a layer of its pipeline is called in transformers, and how model-parallel ranks split it. No torch.

    layer 0            the embedding
    layers 2 … L + 1   the blocks (layers 1 and L + 2 are functions without weights)
    layer L + 3        the last norm
    layer L + 4        the output embedding, unless it is tied to the first

Source: EleutherAI/gpt-neox, megatron/model and tools/ckpts/convert_neox_to_hf.py, whose arithmetic is kept: norms that
ranks hold alike are averaged, biases after a row-parallel product, which each rank adds, are summed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import chain
from typing import Literal

Rule = Literal["rows", "columns", "sum", "mean", "first"]  # concatenated along dimension 0 or 1, …

_FIRST_BLOCK = 2
_LAST_NORM = "norm.weight"

_RULES: dict[str, Rule] = {
    "input_layernorm.weight": "mean", "input_layernorm.bias": "mean",
    "post_attention_layernorm.weight": "mean", "post_attention_layernorm.bias": "mean",
    "attention.query_key_value.weight": "rows", "attention.query_key_value.bias": "rows",
    "attention.dense.weight": "columns", "attention.dense.bias": "sum",
    "attention.rotary_emb.inv_freq": "first",
    "mlp.dense_h_to_4h.weight": "rows", "mlp.dense_h_to_4h.bias": "rows",
    "mlp.dense_4h_to_h.weight": "columns", "mlp.dense_4h_to_h.bias": "sum",
}  # fmt: skip
_ENDS: dict[str, tuple[str, Rule]] = {
    "word_embeddings.weight": ("gpt_neox.embed_in.weight", "rows"),
    _LAST_NORM: ("gpt_neox.final_layer_norm.weight", "mean"),
    "norm.bias": ("gpt_neox.final_layer_norm.bias", "mean"),
    "final_linear.weight": ("embed_out.weight", "rows"),
}


def place_of(layer: int, name: str) -> tuple[str, Rule] | None:
    """(its name in transformers, how ranks are merged) of a layer's tensor; None for one that GPTNeoX does not have."""
    if name in _ENDS:
        return _ENDS[name]
    if layer < _FIRST_BLOCK or name not in _RULES:
        return None
    return f"gpt_neox.layers.{layer - _FIRST_BLOCK}.{name}", _RULES[name]


def last_norm(layers: Mapping[int, Collection[str]]) -> int | None:
    """Which of the layers with these tensors is the last norm."""
    return next((layer for layer, names in layers.items() if _LAST_NORM in names), None)


def first_missing(layers: Collection[int], norm: int) -> int | None:
    """The first layer that is not among `layers` and has weights, up to the last norm; None where all are there."""
    return next((layer for layer in chain((0,), range(_FIRST_BLOCK, norm - 1)) if layer not in layers), None)
