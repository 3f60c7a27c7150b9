"""Small repos in the exact forms of Pythia's and Amber's: {revision: {file: bytes}}, for hub_server.

Pythia: GPTNeoX of 2 layers, width 32, 4 heads, vocabulary 256, context 64, with the buffers of its time: a uint8 mask,
masked_bias (−1e9, which is −inf in fp16), inv_freq. Amber: Llama of the same size, fp32, with inv_freq.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from safetensors.torch import save

Files = dict[str, bytes]
Tensors = dict[str, torch.Tensor]

LAYERS, WIDTH, HEADS, VOCABULARY, CONTEXT = 2, 32, 4, 256, 64
PYTHIA_STEPS = (0, 1, 2, 1000, 2000, 3000, 4000, 5000, 6000)
AMBER_CHUNKS = 4

PYTHIA_CONFIG = {
    "architectures": ["GPTNeoXForCausalLM"], "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "gelu",
    "hidden_size": WIDTH, "initializer_range": 0.02, "intermediate_size": 4 * WIDTH, "layer_norm_eps": 1e-05,
    "max_position_embeddings": CONTEXT, "model_type": "gpt_neox", "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS, "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": False,
    "torch_dtype": "float16", "transformers_version": "4.24.0", "use_cache": True, "use_parallel_residual": True,
    "vocab_size": VOCABULARY,
}  # fmt: skip
AMBER_CONFIG = {
    "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
    "hidden_size": WIDTH, "initializer_range": 0.02, "intermediate_size": 64, "max_position_embeddings": CONTEXT,
    "model_type": "llama", "num_attention_heads": HEADS, "num_hidden_layers": LAYERS, "num_key_value_heads": HEADS,
    "rms_norm_eps": 1e-06, "tie_word_embeddings": False, "torch_dtype": "float32", "use_cache": True,
    "vocab_size": VOCABULARY,
}  # fmt: skip


@cache
def pythia() -> dict[str, Files]:
    """Revisions, of which transformers loads every one:

    step0, step1  equal, as Pythia's are    step2     fp32
    step1000      one .bin                  step2000  a .bin in two shards, with its index
    step3000      one .bin; main has its weights as .bin and as safetensors
    step4000      safetensors
    step5000      wrong: the file of step1000
    step6000      wrong: the tensors of step1000, as safetensors
    """
    single = {step: {"pytorch_model.bin": bin_file(pythia_tensors(step))} for step in (0, 1000, 3000)}
    shards = sharded(pythia_tensors(2000), 2)
    weights: dict[str, Files] = {
        "main": {**single[3000], "model.safetensors": safetensors_file(pythia_tensors(3000))},
        "step0": single[0],
        "step1": single[0],
        "step2": {"pytorch_model.bin": bin_file(pythia_tensors(2, torch.float32))},
        "step1000": single[1000],
        "step2000": shards,
        "step3000": single[3000],
        "step4000": {"model.safetensors": safetensors_file(pythia_tensors(4000))},
        "step5000": single[1000],
        "step6000": {"model.safetensors": safetensors_file(pythia_tensors(1000))},
    }
    beside = {"config.json": _json(PYTHIA_CONFIG), "tokenizer.json": b"{}", "README.md": b"# pythia-tiny\n"}
    return {revision: {**beside, **files} for revision, files in weights.items()}


@cache
def amber() -> dict[str, Files]:
    """ckpt_000 … ckpt_003, and main, which is the fifth: fp32 in two .bin shards."""
    beside = {"config.json": _json(AMBER_CONFIG), "README.md": b"# Amber\n"}
    names = [*(f"ckpt_{chunk:03}" for chunk in range(AMBER_CHUNKS)), "main"]
    return {name: {**beside, **sharded(amber_tensors(chunk), 2)} for chunk, name in enumerate(names)}


def pythia_tensors(step: int, dtype: torch.dtype = torch.float16) -> Tensors:
    """As a .bin of Pythia has them, buffers included."""
    found = {
        "gpt_neox.embed_in.weight": (VOCABULARY, WIDTH),
        **{f"gpt_neox.final_layer_norm.{one}": (WIDTH,) for one in ("weight", "bias")},
        "embed_out.weight": (VOCABULARY, WIDTH),
    }
    for layer in range(LAYERS):
        block = f"gpt_neox.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found |= {f"{block}.{norm}.{one}": (WIDTH,) for one in ("weight", "bias")}
        for name, out, into in [
            ("attention.query_key_value", 3 * WIDTH, WIDTH),
            ("attention.dense", WIDTH, WIDTH),
            ("mlp.dense_h_to_4h", 4 * WIDTH, WIDTH),
            ("mlp.dense_4h_to_h", WIDTH, 4 * WIDTH),
        ]:
            found |= {f"{block}.{name}.weight": (out, into), f"{block}.{name}.bias": (out,)}
    tensors = _drawn(found, step, dtype)
    for layer in range(LAYERS):
        attention = f"gpt_neox.layers.{layer}.attention"
        tensors[f"{attention}.bias"] = torch.ones(CONTEXT, CONTEXT, dtype=torch.uint8).tril()[None, None]
        tensors[f"{attention}.masked_bias"] = torch.tensor(-1e9).to(dtype)
        tensors[f"{attention}.rotary_emb.inv_freq"] = torch.ones(1, dtype=dtype)  # of 2 of a head's 8 dimensions
    return tensors


def amber_tensors(chunk: int) -> Tensors:
    """As a .bin of Amber has them."""
    found = {
        "model.embed_tokens.weight": (VOCABULARY, WIDTH),
        "model.norm.weight": (WIDTH,),
        "lm_head.weight": (VOCABULARY, WIDTH),
    }
    for layer in range(LAYERS):
        block = f"model.layers.{layer}"
        found |= {f"{block}.self_attn.{one}_proj.weight": (WIDTH, WIDTH) for one in "qkvo"}
        found |= {f"{block}.mlp.{one}_proj.weight": (64, WIDTH) for one in ("gate", "up")}
        found |= {f"{block}.mlp.down_proj.weight": (WIDTH, 64)}
        found |= {f"{block}.{one}_layernorm.weight": (WIDTH,) for one in ("input", "post_attention")}
    tensors = _drawn(found, chunk, torch.float32)
    for layer in range(LAYERS):
        tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = 10000.0 ** -(torch.arange(0, 8, 2) / 8)
    return tensors


def bin_file(tensors: Mapping[str, torch.Tensor]) -> bytes:
    file = io.BytesIO()
    torch.save(dict(tensors), file)
    return file.getvalue()


def safetensors_file(tensors: Mapping[str, torch.Tensor]) -> bytes:
    return save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata={"format": "pt"})


def sharded(tensors: Mapping[str, torch.Tensor], shards: int) -> Files:
    """As save_pretrained has written .bin in shards: pytorch_model-00001-of-00002.bin … and the index."""
    names = list(tensors)
    parts = [names[one * len(names) // shards : (one + 1) * len(names) // shards] for one in range(shards)]
    files = {
        f"pytorch_model-{number:05}-of-{shards:05}.bin": bin_file({name: tensors[name] for name in part})
        for number, part in enumerate(parts, start=1)
    }
    places = {name: file for file, part in zip(files, parts, strict=True) for name in part}
    total = sum(tensor.nbytes for tensor in tensors.values())
    return {**files, "pytorch_model.bin.index.json": _json({"metadata": {"total_size": total}, "weight_map": places})}


def _drawn(shapes: Mapping[str, tuple[int, ...]], step: int, dtype: torch.dtype) -> Tensors:
    """Weights around 1 for norms, around 0 for all others; at another step, others."""
    generator = torch.Generator().manual_seed(1234 + step)
    return {
        name: (0.02 * torch.randn(shape, generator=generator) + (1.0 if _is_norm(name) else 0.0)).to(dtype)
        for name, shape in shapes.items()
    }


def _is_norm(name: str) -> bool:
    return "norm" in name and name.endswith("weight")


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=2).encode()
