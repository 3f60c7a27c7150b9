"""OLMo 1 and 2: what their trainer's tensors are called in transformers, and where it keeps several as one. No torch.

    transformer.wte, ln_f, ff_out            embedding, last norm (OLMo 2), output embedding unless it is tied
    transformer.blocks.N.att_proj            queries, keys and values, one below the other
    transformer.blocks.N.ff_proj             up, and below it gate

Source: allenai/OLMo 59a53e3f, scripts/convert_olmo2_to_hf.py and scripts/convert_olmo_to_hf_new.py; FSDP's prefix is
left out as olmo/model.py _make_state_dict_compatible does it.
"""

from __future__ import annotations

import re
from collections.abc import Collection

_WRAPPED = "_fsdp_wrapped_module."
_BLOCK = re.compile(r"transformer\.blocks\.(\d+)\.(.+)")
_ENDS = {
    "transformer.wte.weight": "model.embed_tokens.weight",
    "transformer.ln_f.weight": "model.norm.weight",
    "transformer.ff_out.weight": "lm_head.weight",
}
_PARTS = {
    "att_proj.weight": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "ff_proj.weight": ("mlp.up_proj.weight", "mlp.gate_proj.weight"),
    "attn_out.weight": ("self_attn.o_proj.weight",),
    "ff_out.weight": ("mlp.down_proj.weight",),
    "q_norm.weight": ("self_attn.q_norm.weight",),
    "k_norm.weight": ("self_attn.k_norm.weight",),
    "attn_norm.weight": ("post_attention_layernorm.weight",),
    "ff_norm.weight": ("post_feedforward_layernorm.weight",),
}


def plain(name: str) -> str:
    return name.replace(_WRAPPED, "")


def model_type(names: Collection[str]) -> str:
    """ "olmo2", whose attention has norms, or "olmo", whose norms have no weights."""
    return "olmo2" if any(name.endswith(".q_norm.weight") for name in names) else "olmo"


def parts_of(name: str, shape: tuple[int, ...], kind: str) -> dict[str, tuple[int, int]] | None:
    """{name in transformers: its rows, from … to} of a tensor; None for one that a model of `kind` does not have."""
    if kind == "olmo" and ("norm" in name or "ln_f" in name):
        return None
    if name in _ENDS:
        return {_ENDS[name]: (0, shape[0])}
    block = _BLOCK.fullmatch(name)
    if block is None or block[2] not in _PARTS:
        return None
    names = [f"model.layers.{block[1]}.{part}" for part in _PARTS[block[2]]]
    if len(names) == 3:  # queries are as wide as the model, and fewer heads may have keys and values
        ends = (0, shape[1], (shape[0] + shape[1]) // 2, shape[0])
    else:
        ends = tuple(shape[0] * part // len(names) for part in range(len(names) + 1))
    return {part: (ends[at], ends[at + 1]) for at, part in enumerate(names)}
