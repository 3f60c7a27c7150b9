"""OLMo's full checkpoints: weights and Adam's state by name, renamed and split as transformers has them.

    config.yaml   model.pt   optim.pt   train.pt          allenai/OLMo 59a53e3f, olmo/checkpoint.py FullCheckpointer

The state dicts are those of FSDP (keys are names) or of the plain optimizer (keys are numbers, which `param_names` of
its groups name). Masters are the weights: FSDP keeps them in fp32.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor
from transformers import Olmo2Config, OlmoConfig, PreTrainedConfig

from lawa.checkpoints.carry import CONFIG
from lawa.checkpoints.layouts.olmo import model_type, parts_of, plain
from lawa.errors import LawaError
from lawa.trajectories.converted import MASTER, MOMENTS, Converted, Outputs, Shapes
from lawa.trajectories.native_files import load, load_tensors

_CONFIG, _MODEL, _OPTIMIZER, _TRAINER = "config.yaml", "model.pt", "optim.pt", "train.pt"

Parts = Mapping[str, tuple[int, int]]  # {name in transformers: its rows, from … to}
State = Mapping[str, Mapping[str, Any]]


def is_here(native: Path) -> bool:
    return (native / _OPTIMIZER).is_file() and (native / _MODEL).is_file()


def write(native: Path, folder: Path, config: Path | None) -> Converted:
    weights = {plain(name): tensor for name, tensor in load_tensors(native / _MODEL).items()}
    state = _state(native / _OPTIMIZER)
    update = load(native / _TRAINER).get("global_step")
    if not isinstance(update, int):
        raise LawaError(f"{native / _TRAINER} does not say which global_step it is of; fetch it again")
    kind = model_type(weights)
    parts = {name: _parts(native, name, tensor, kind) for name, tensor in weights.items()}
    shapes = {
        own: (stop - start, *weights[name].shape[1:])
        for name, rows in parts.items()
        for own, (start, stop) in rows.items()
    }
    missing = [own for name, rows in parts.items() if name not in state for own in rows]
    outputs = Outputs(folder, shapes, model_type=kind, without=missing)
    for name, rows in parts.items():
        _write(outputs, MASTER, weights[name], rows)
        if name in state:
            _write_adam(outputs, native / _OPTIMIZER, name, weights[name], state[name], rows)
    return Converted(
        format="olmo",
        update=update,
        step=max((float(one["step"]) for one in state.values()), default=0.0),
        config=_write_config(native, folder, config, kind, shapes),
        without_state=missing,
    )


def _state(file: Path) -> State:
    """Adam's state by the trainer's plain names."""
    loaded = load(file)
    try:
        names: dict[Any, str] = {}
        for group in loaded["param_groups"]:
            names |= dict(zip(group["params"], group.get("param_names", group["params"]), strict=True))
        return {plain(names[key]): one for key, one in loaded["state"].items() if one}
    except (KeyError, TypeError, AttributeError, ValueError) as bad:
        raise LawaError(f"{file} is no optimizer state by name ({bad!r:.100}); it is not converted") from None


def _parts(native: Path, name: str, weight: Tensor, kind: str) -> Parts:
    parts = parts_of(name, tuple(weight.shape), kind)
    if parts is None:
        raise LawaError(
            f"{native / _MODEL} has {name!r}, which transformers' {kind} does not have; its state is not converted"
        )
    return parts


def _write(outputs: Outputs, key: str, tensor: Tensor, parts: Parts) -> None:
    for own, (start, stop) in parts.items():
        outputs.tensor(key, own).copy_(tensor[start:stop])


def _write_adam(
    outputs: Outputs, file: Path, name: str, weight: Tensor, state: Mapping[str, Any], parts: Parts
) -> None:
    for key in MOMENTS:
        if key not in state or state[key].shape != weight.shape:
            raise LawaError(
                f"{file}: {name!r} has no {key} of its weight's shape; it is not Adam's, or of another model than "
                f"{_MODEL}"
            )
        _write(outputs, key, state[key], parts)
    for own in parts:
        outputs.tensor("step", own).fill_(float(state["step"]))


def _write_config(native: Path, folder: Path, config: Path | None, kind: str, shapes: Shapes) -> bool:
    config = config or native / _CONFIG
    if config.suffix == ".json":
        shutil.copyfile(config, folder / CONFIG)
    elif config.is_file():
        _made(config, kind, shapes).save_pretrained(folder)
    return config.is_file()


def _made(file: Path, kind: str, shapes: Shapes) -> PreTrainedConfig:
    """Source: allenai/OLMo 59a53e3f, scripts/convert_olmo2_to_hf.py and convert_olmo_to_hf_new.py."""
    try:
        model = yaml.safe_load(file.read_text(encoding="utf-8"))["model"]
        vocabulary, width = shapes["model.embed_tokens.weight"]
        heads, keys = model["n_heads"], shapes["model.layers.0.self_attn.k_proj.weight"][0]
        common: dict[str, Any] = {
            "vocab_size": vocabulary,
            "hidden_size": width,
            "intermediate_size": shapes["model.layers.0.mlp.up_proj.weight"][0],
            "num_hidden_layers": sum(name.endswith("mlp.up_proj.weight") for name in shapes),
            "num_attention_heads": heads,
            "num_key_value_heads": keys * heads // width,
            "max_position_embeddings": model["max_sequence_length"],
            "rope_parameters": {"rope_type": "default", "rope_theta": float(model.get("rope_theta", 10000))},
            "tie_word_embeddings": "lm_head.weight" not in shapes,
            "pad_token_id": model["pad_token_id"],
            "eos_token_id": model["eos_token_id"],
            "dtype": "float32",
        }
        if kind == "olmo2":
            if not model.get("norm_after"):
                raise LawaError(f"{file} has no norm_after, which transformers' Olmo2 always has; it is not converted")
            return Olmo2Config(
                architectures=["Olmo2ForCausalLM"], rms_norm_eps=float(model["layer_norm_eps"]), **common
            )
        return OlmoConfig(architectures=["OlmoForCausalLM"], clip_qkv=model.get("clip_qkv"), **common)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, AttributeError) as bad:
        raise LawaError(f"{file} is no configuration of OLMo ({str(bad)[:100]}); fetch it again") from None
