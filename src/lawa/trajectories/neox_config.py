"""transformers' config.json of a GPT-NeoX model, from the YAML that it was trained with.

Source: EleutherAI/gpt-neox v1.0 (71df4d50), tools/convert_to_hf.py create_config; sizes come from the weights.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from transformers import GPTNeoXConfig

from lawa.checkpoints.carry import CONFIG
from lawa.errors import LawaError
from lawa.trajectories.converted import Shapes

_END = 0  # of a document, in the tokenizer that Pythia and GPT-NeoX-20B share
_ONLY = {"pos-emb": ("learned", "rotary"), "norm": ("layernorm", "layernorm"), "gpt-j-tied": (False, False)}
"""{setting: (what it is where the YAML is silent, the only one that transformers' GPTNeoX has)}"""


def write(native: Path, folder: Path, config: Path | None, shapes: Shapes) -> bool:
    """Write folder/config.json from `config` or the only YAML in `native`; whether there was any.

    shapes  of the merged weights, by their names in transformers' files
    """
    if config is None:
        found = sorted(native.glob("*.yml"))
        if len(found) != 1:
            return False
        config = found[0]
    if config.suffix == ".json":
        shutil.copyfile(config, folder / CONFIG)
    else:
        _made(config, shapes).save_pretrained(folder)
    return True


def _made(file: Path, shapes: Shapes) -> GPTNeoXConfig:
    settings = _settings(file)
    for name, (silent, only) in _ONLY.items():
        has = settings.get(name, silent)
        if has != only:
            raise LawaError(f"{file} has {name} {has!r}, and transformers' GPTNeoX knows only {only!r}")
    vocabulary, width = shapes["gpt_neox.embed_in.weight"]
    layers = sum(name.endswith("input_layernorm.weight") for name in shapes)
    for name, own in (("hidden-size", width), ("num-layers", layers)):
        if settings.get(name) != own:
            raise LawaError(f"{file} has {name} {settings.get(name)}, and the layer files {own}; name their own YAML")
    try:
        return GPTNeoXConfig(
            architectures=["GPTNeoXForCausalLM"],
            vocab_size=vocabulary,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=settings["num-attention-heads"],
            intermediate_size=shapes["gpt_neox.layers.0.mlp.dense_h_to_4h.weight"][0],
            hidden_act=settings.get("activation", "gelu"),
            rope_parameters={
                "rope_type": "default",
                "rope_theta": float(settings.get("rotary-emb-base", 10000)),
                "partial_rotary_factor": float(settings.get("rotary-pct", 1)),
            },
            max_position_embeddings=settings["max-position-embeddings"],
            initializer_range=float(settings.get("init-method-std", 0.02)),
            layer_norm_eps=float(settings.get("layernorm-epsilon", 1e-5)),  # YAML reads 1e-5 as text
            bos_token_id=_END,
            eos_token_id=_END,
            tie_word_embeddings=not settings.get("no-weight-tying", False),
            use_parallel_residual=settings.get("gpt-j-residual", False),
            dtype="float32",
        )
    except KeyError as missing:
        raise LawaError(f"{file} does not say {missing.args[0]}; name transformers' config.json of the model") from None


def _settings(file: Path) -> Mapping[str, Any]:
    """With hyphens, as NeoX takes either form."""
    try:
        read = yaml.safe_load(file.read_text(encoding="utf-8"))
        return {str(name).replace("_", "-"): value for name, value in read.items()}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError) as bad:
        raise LawaError(f"{file} is no GPT-NeoX configuration ({str(bad).splitlines()[0][:100]})") from None
