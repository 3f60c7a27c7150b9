"""The models that are measured: transformers' own classes with random weights."""

from __future__ import annotations

import torch
from torch import nn

from lawa.pretrain.presets import PRESETS


def gpt2_small(*, context: int = 1024) -> nn.Module:
    """124M parameters in 148 tensors, fp32; tied embeddings."""
    return _model("gpt2-small", vocab_size=50257, n_positions=context)


def demo() -> nn.Module:
    """The demo's model: 1.3M parameters in 52 tensors, most of them small."""
    return _model("pythia-14m", num_hidden_layers=4, vocab_size=2048, max_position_embeddings=128)


def tiny() -> nn.Module:
    """For a smoke test."""
    shape = {"n_layer": 1, "n_embd": 32, "n_head": 2, "vocab_size": 128, "n_positions": 32}
    return _model("gpt2-small", **shape, bos_token_id=0, eos_token_id=0)


def _model(preset: str, **fields: int) -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    architecture, shape = PRESETS[preset]
    config = AutoConfig.for_model(architecture, **{**shape, **fields, "use_cache": False})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)  # no tensor is all zeros or ones
    return model


def size(model: nn.Module) -> str:
    """
    >>> size(demo())
    '1.3M in 52 tensors'
    """
    parameters = list(model.parameters())
    return f"{sum(parameter.numel() for parameter in parameters) / 1e6:.1f}M in {len(parameters)} tensors"
