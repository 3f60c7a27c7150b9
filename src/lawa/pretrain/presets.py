"""Model sizes of the paper's experiments, as overrides of transformers' own configuration classes. No torch.

pythia-*  EleutherAI/pythia a19eecb: GPT-NeoX with rotary_pct 0.25, parallel residual, untied embeddings
gpt2-*    the sizes of Radford et al. 2019, as nanoGPT trains them; embeddings tied

The vocabulary and the number of positions come from the data.
"""

from __future__ import annotations

from typing import Any

ARCHITECTURES = ("gpt_neox", "llama", "gpt2")

# layers, width, heads
_PYTHIA = {
    "14m": (6, 128, 4),
    "31m": (6, 256, 8),
    "70m": (6, 512, 8),
    "160m": (12, 768, 12),
    "410m": (24, 1024, 16),
    "1b": (16, 2048, 8),
    "1.4b": (24, 2048, 16),
    "2.8b": (32, 2560, 32),
    "6.9b": (32, 4096, 32),
    "12b": (36, 5120, 40),
}
_GPT2 = {"small": (12, 768, 12), "medium": (24, 1024, 16), "large": (36, 1280, 20)}


def _gpt_neox(layers: int, width: int, heads: int) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
        "use_parallel_residual": True,
        "layer_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    }


def _gpt2(layers: int, width: int, heads: int) -> dict[str, Any]:
    # Pre-training as nanoGPT does it has no dropout.
    return {"n_layer": layers, "n_embd": width, "n_head": heads, "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}


PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"pythia-{size}": ("gpt_neox", _gpt_neox(*shape)) for size, shape in _PYTHIA.items()},
    **{f"gpt2-{size}": ("gpt2", _gpt2(*shape)) for size, shape in _GPT2.items()},
}
