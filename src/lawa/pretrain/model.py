"""The model that is trained: transformers' own class, in fp32, from fresh or from given weights.

Code that comes with a model is never run: only what transformers itself knows, and pickles with weights_only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lawa.checkpoints.publish import sha256
from lawa.errors import LawaError, UsageError
from lawa.evaluation.model import one_sentence, quiet, refuse_misfits
from lawa.pretrain.config import Config
from lawa.pretrain.presets import PRESETS
from lawa.pretrain.sections.model import ModelConfig
from lawa.pretrain.text import Text

_VOCABULARY_MULTIPLE = 128  # GPT-NeoX's make_vocab_size_divisible_by; it makes 50257 and 50277 into 50304
_SHAPE = ("config.json", "generation_config.json")
_SAFE = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
_PICKLED = ("pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True, kw_only=True)
class Given:
    """A model that exists, found on this machine.

    name      as the configuration names it
    path      its folder, for a hub model the snapshot in the cache; or its config.json
    revision  the commit of a hub model; None for a local one
    weights   whether its weights are taken, or its shape only
    """

    name: str
    path: Path
    revision: str | None = None
    weights: bool = False

    @property
    def files(self) -> list[Path]:
        """What is read of it."""
        if self.path.is_file():
            return [self.path]
        patterns = ("config.json", *(self.weight_patterns if self.weights else ()))
        return sorted(file for pattern in patterns for file in self.path.glob(pattern))

    @property
    def weight_patterns(self) -> tuple[str, ...]:
        """Names of the files with its weights: safetensors where there are any; () where there are no weights."""
        return next((names for names in (_SAFE, _PICKLED) if any(map(list, map(self.path.glob, names)))), ())

    def provenance(self) -> dict[str, Any]:
        """For run.json: the name, the commit, and the SHA-256 of every file that is read."""
        return {
            "weights" if self.weights else "config": self.name,
            "revision": self.revision,
            "files": {file.name: sha256(file) for file in self.files},
        }


def given_model(model: ModelConfig) -> Given | None:
    """The model named by model.weights or model.config, fetched from the hub if it is no local path; else None.

    Raises LawaError where it cannot be had.
    """
    if model.source is None:
        return None
    weights = model.weights is not None
    path = Path(model.source)
    local = path.exists()
    if local:
        given = Given(name=model.source, path=path, weights=weights)
    else:
        path = _from_hub(model, _SHAPE + (_SAFE if weights else ()))
        given = Given(name=model.source, path=path, revision=path.name, weights=weights)
        if weights and not given.weight_patterns:
            _from_hub(model, _SHAPE + _PICKLED)
    setting = f"model.{'weights' if weights else 'config'}={model.source!r}"
    where = "" if local else " on the hub, or not in the cache of a machine that is offline"
    if not given.files or (weights and not given.weight_patterns):
        missing = "model.safetensors or pytorch_model.bin" if given.files else "config.json"
        raise LawaError(f"{setting} has no {missing}{where}; name a folder that save_pretrained wrote, or a hub model")
    return given


def shape_of(checkpoint: Path) -> Given:
    """The shape of a run's own checkpoint, for going on with it: nothing is fetched, the weights are loaded later."""
    return Given(name=str(checkpoint), path=checkpoint)


def make_model(config: Config, text: Text, *, device: torch.device, given: Given | None = None) -> PreTrainedModel:
    """The model on `device`, in fp32 whatever its weights' dtype on disk, in train mode.

    text   its vocabulary and end of text must fit the model
    given  where it comes from; default: what the configuration names

    The same seed gives the same fresh weights. With training.compile its forward is compiled in place, on the first
    call: names of parameters and save_pretrained stay as they are. Raises LawaError for weights that cannot be read
    or do not fit, UsageError for settings that cannot be.
    """
    given = given or given_model(config.model)
    shape = model_config(config, text, given)
    torch.manual_seed(config.seed)
    if given is not None and given.weights:
        model = load_weights(given, shape)
    else:
        with device, one_sentence(f"no causal language model can be made of {type(shape).__name__}"):
            model = AutoModelForCausalLM.from_config(shape, dtype=torch.float32)
    nn.Module.to(model, device)
    model.train()
    if config.training.activation_checkpointing:
        _checkpoint_activations(model)
    if config.training.compile:
        model.compile()
    return model


def model_config(config: Config, text: Text, given: Given | None = None) -> Any:
    """transformers' own configuration: the preset and what the data decides, or the given one; then the overrides."""
    shape = _preset(config, text) if given is None else _read(config, text, given)
    if shape.vocab_size < text.vocab_size:
        raise UsageError(
            f"the model's vocabulary of {shape.vocab_size} is less than the tokenizer's {text.vocab_size}; "
            "set data.tokenizer to the model's own, or raise model.overrides.vocab_size where weights are fresh"
        )
    positions = getattr(shape, "max_position_embeddings", None)
    if positions is not None and config.data.context > positions:
        raise UsageError(
            f"data.context={config.data.context} is longer than the model's {positions} positions; lower it to that"
        )
    return shape


def _preset(config: Config, text: Text) -> Any:
    model = config.model
    architecture, sizes = PRESETS[model.preset] if model.preset is not None else (model.architecture, {})
    assert architecture is not None  # ModelConfig checked it
    base = AutoConfig.for_model(architecture)
    positions = base.attribute_map.get("max_position_embeddings", "max_position_embeddings")
    return AutoConfig.for_model(
        architecture,
        **{
            **sizes,
            "vocab_size": -(-text.vocab_size // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE,
            positions: config.data.context,
            **_end_of_text(text),
            **_overrides(model, base),
        },
    )


def _read(config: Config, text: Text, given: Given) -> Any:
    fields = _end_of_text(text) if config.model.config is not None else {}
    with one_sentence(f"{given.name}: transformers cannot read its configuration"):
        base = AutoConfig.from_pretrained(str(given.path), trust_remote_code=False)
        fields.update(_overrides(config.model, base))
        shape = AutoConfig.from_pretrained(str(given.path), trust_remote_code=False, **fields)
    if getattr(shape, "quantization_config", None):
        raise LawaError(f"{given.name} is quantized, and cannot be trained in fp32; give the model it was made from")
    return shape


def _overrides(model: ModelConfig, base: Any) -> dict[str, Any]:
    """model.overrides, by the names that `base`, a configuration of that class, stores."""
    own = {base.attribute_map.get(name, name): (name, value) for name, value in model.overrides.items()}
    for field, (name, _) in own.items():
        if not hasattr(base, field):
            raise UsageError(f"model.overrides.{name} is no field of transformers' {type(base).__name__}")
    return {field: value for field, (_, value) in own.items()}


def _end_of_text(text: Text) -> dict[str, Any]:
    return {"bos_token_id": text.end_of_text, "eos_token_id": text.end_of_text}


def _from_hub(model: ModelConfig, patterns: tuple[str, ...]) -> Path:
    """The folder of the cache that holds these files of the model, named by the commit."""
    name = model.source
    assert name is not None
    at = f" at revision {model.revision!r}" if model.revision else ""
    with one_sentence(
        f"{name}{at} is no folder here, and could not be had from the Hugging Face hub",
        "give a path that exists or a name on the hub, and fetch it once with a connection if this machine is offline",
    ):
        return Path(snapshot_download(name, revision=model.revision, allow_patterns=list(patterns)))


def load_weights(given: Given, shape: Any) -> PreTrainedModel:
    """Its weights in fp32 on the CPU, every one of them and no other."""
    with quiet(), one_sentence(f"{given.name}: transformers cannot load its weights"):
        model, report = AutoModelForCausalLM.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
            str(given.path),
            config=shape,
            dtype=torch.float32,
            trust_remote_code=False,
            weights_only=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            output_loading_info=True,
        )
    own = type(model).__name__
    refuse_misfits(
        given.name, own, report,
        "remove the model.overrides that change its shape, or give weights of this architecture",
    )  # fmt: skip
    return model


def _checkpoint_activations(model: PreTrainedModel) -> None:
    # transformers 5.23 renamed it; the older name warns there, the newer one is missing before.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    with one_sentence("training.activation_checkpointing=true is not possible", "set it to false"):
        enable({"use_reentrant": False})
