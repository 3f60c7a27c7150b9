"""A checkpoint of `lawa train`, written as the trainers of public runs wrote theirs.

    write_neox    GPT-NeoX: layer files, mp_rank states, ZeRO-1 partitions of R ranks, the YAML
    write_olmo    OLMo: config.yaml, model.pt, optim.pt, train.pt
    write_pythia  EleutherAI's hub repos: fp16 .bin, with the buffers that are no weights
    write_amber   LLM360's: fp32 .bin of a Llama, in shards

Literal twins of how each trainer flattens, shares and names; nothing of lawa's readers is used.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

State = dict[str, Tensor]
MOMENTS = ("exp_avg", "exp_avg_sq")
BLOCK = (
    "input_layernorm.weight", "input_layernorm.bias", "attention.query_key_value.weight",
    "attention.query_key_value.bias", "attention.dense.weight", "attention.dense.bias",
    "post_attention_layernorm.weight", "post_attention_layernorm.bias", "mlp.dense_h_to_4h.weight",
    "mlp.dense_h_to_4h.bias", "mlp.dense_4h_to_h.weight", "mlp.dense_4h_to_h.bias",
)  # fmt: skip
ROWS = ("embed_in.weight", "embed_out.weight", "query_key_value.weight", "query_key_value.bias",
        "dense_h_to_4h.weight", "dense_h_to_4h.bias")  # fmt: skip
COLUMNS = ("attention.dense.weight", "dense_4h_to_h.weight")
SUMMED = ("attention.dense.bias", "dense_4h_to_h.bias")


class DynamicLossScaler:
    """With DeepSpeed's attributes; pickled under DeepSpeed's name."""

    def __init__(self, state: Mapping[str, Any]) -> None:
        self.cur_scale = state["scale_now"]
        self.cur_iter = state["update"]
        self.last_overflow_iter = state["last_overflow"]
        self.scale_factor, self.scale_window, self.min_scale = 2.0, 1000, 1
        self.delayed_shift, self.cur_hysteresis = 2, state["hysteresis_left"]
        self.consecutive_hysteresis, self.raise_error_at_min_scale = False, True


DynamicLossScaler.__module__ = "deepspeed.runtime.fp16.loss_scaler"


# ---- GPT-NeoX


def write_neox(
    checkpoint: Path,
    into: Path,
    *,
    ranks: int = 2,
    model_parallel: int = 1,
    layout: str = "stage1",
    interval: int = 500_000_000,
    dtype: torch.dtype = torch.float16,
    step: bool = True,
    skipped: int = 0,
    decay: bool = True,
) -> None:
    """Write `checkpoint` of a GPTNeoX into the folder `into`.

    layout    "stage1": DeeperSpeed eb7f5cff, elastic; "stage1-rigid": the same with elastic_checkpoint off;
              "stage2": DeepSpeed's stage_1_and_2.py, elastic; "stage2-rigid"; "bf16": its bf16_optimizer.py
    interval  stage1's max_elements_per_comm (reduce_bucket_size)
    dtype     of the layer files
    step      whether Adam's count is saved with its state, as torch's and DeepSpeed's CPU Adam do; apex's is lost
    skipped   updates that the loss scaler skipped, as it is told
    decay     with weight decay, which makes two groups of parameters
    """
    into.mkdir(parents=True)
    config, masters, moments, count = _read(checkpoint)
    saved = json.loads((checkpoint / "training/state.json").read_text())
    update = saved["position"]["update"]
    scaler = saved["scaler"] or {"scale_now": 4096.0, "hysteresis_left": 2, "update": update, "last_overflow": -1}
    for model in range(model_parallel):
        own = {
            key: {name: _part(name, tensor, model, model_parallel, key) for name, tensor in state.items()}
            for key, state in {"master": masters, **moments}.items()
        }
        layers = _layers(masters, config["num_hidden_layers"])
        for layer, names in layers.items():
            tensors = {short: own["master"][name].to(dtype) for short, name in names.items()}
            torch.save(_with_buffer(tensors), into / f"layer_{layer:02}-model_{model:02}-model_states.pt")
        states = _states(update, skipped, ranks, model_parallel)
        torch.save(states, into / f"mp_rank_{model:02}_model_states.pt")
        order = [name for names in layers.values() for name in names.values()]
        plain = [name for name in order if "norm" in name or name.endswith(".bias")]
        groups = [[name for name in order if name not in plain], plain] if decay else [order]
        for rank, state in enumerate(_partitions(own, groups, ranks, layout, interval, count if step else None)):
            half = {"loss_scaler": DynamicLossScaler(scaler), "dynamic_loss_scale": True, "overflow": False}
            prefix, more = ("bf16_", {}) if layout == "bf16" else ("", half)
            with _deepspeed():
                torch.save(
                    {"optimizer_state_dict": {**more, **state}},
                    into / f"{prefix}zero_pp_rank_{rank}_mp_rank_{model:02}_optim_states.pt",
                )
    (into / "TINY.yml").write_text(_neox_yaml(config, model_parallel))


def _with_buffer(layer: State) -> State:
    """The rotary frequencies, which a block has between its projections."""
    found = {}
    for name, tensor in layer.items():
        found[name] = tensor
        if name == "attention.query_key_value.bias":
            found["attention.rotary_emb.inv_freq"] = torch.rand(2).half()
    return found


def _states(update: int, skipped: int, ranks: int, model_parallel: int) -> dict[str, Any]:
    """What mp_rank_MM_model_states.pt has of a pipeline's engine, and of NeoX's own."""
    schedule = {
        "start_lr": 1e-3, "warmup_iter": 2.0, "num_iters": update - skipped, "decay_style": "cosine", "end_iter": 100,
        "min_lr": 1e-4,
    }  # fmt: skip
    return {
        "module": None, "optimizer": None, "lr_scheduler": schedule, "csr_tensor_module_names": set(),
        "skipped_steps": skipped, "global_steps": update, "global_samples": 8 * update, "dp_world_size": ranks,
        "mp_world_size": model_parallel, "iteration": update, "args": {"tokenizer_type": "HFTokenizer"},
        "random_rng_state": random.getstate(), "np_rng_state": np.random.get_state(),
        "torch_rng_state": torch.get_rng_state(),
        "rng_tracker_states": {"model-parallel-rng": torch.get_rng_state()},
    }  # fmt: skip


def _read(checkpoint: Path) -> tuple[dict[str, Any], State, dict[str, State], float]:
    """(config, masters and moments by the names of transformers' files, Adam's count)."""
    config = json.loads((checkpoint / "config.json").read_text())
    masters = load_file(checkpoint / "model.safetensors")
    optimizer = load_file(checkpoint / "training/optimizer.safetensors")
    renamed = {"embed_out.weight": "lm_head.weight"}
    moments = {
        key: {name: optimizer[f"{key}.{name if f'{key}.{name}' in optimizer else renamed[name]}"] for name in masters}
        for key in MOMENTS
    }
    return config, masters, moments, next(float(t) for name, t in optimizer.items() if name.startswith("step."))


def _layers(state: State, blocks: int) -> dict[int, dict[str, str]]:
    """{layer: {GPT-NeoX's name: transformers'}}."""
    return {
        0: {"word_embeddings.weight": "gpt_neox.embed_in.weight"},
        **{block + 2: {name: f"gpt_neox.layers.{block}.{name}" for name in BLOCK} for block in range(blocks)},
        blocks + 3: {f"norm.{kind}": f"gpt_neox.final_layer_norm.{kind}" for kind in ("weight", "bias")},
        **({blocks + 4: {"final_linear.weight": "embed_out.weight"}} if "embed_out.weight" in state else {}),
    }


def _part(name: str, tensor: Tensor, model: int, models: int, key: str) -> Tensor:
    """What a model-parallel rank has of a master or moment."""
    if name.endswith(ROWS):
        return tensor.chunk(models)[model].clone()
    if name.endswith(COLUMNS):
        return tensor.chunk(models, dim=1)[model].clone()
    if name.endswith(SUMMED) and key == "master":
        return tensor / models
    return tensor.clone()


def _partitions(
    own: Mapping[str, State], groups: list[list[str]], ranks: int, layout: str, interval: int, count: float | None
) -> list[dict[str, Any]]:
    """The optimizer's state dict of every rank."""
    stage1, rigid = layout.startswith("stage1"), layout.endswith("rigid") or layout == "bf16"
    cut = {key: [_cut(state, names, ranks, interval if stage1 else None) for names in groups]
           for key, state in own.items()}  # fmt: skip
    sizes = [sum(own["master"][name].numel() for name in names) for names in groups]
    found = []
    for rank in range(ranks):
        held = {key: [intervals[rank] for intervals in cut[key]] for key in cut}  # [group][interval]
        lean = {key: [_lean(one, rank, ranks, sizes[g]) for g, one in enumerate(held[key])] for key in held}
        masters = held["master"] if layout in ("stage1-rigid", "bf16") else lean["master"]
        adam = held if rigid else lean
        extra = {} if count is None else {"step": torch.tensor(count) if rigid else int(count)}
        states = [[{**{key: adam[key][g][at] for key in MOMENTS}, **extra} for at in range(len(held["master"][g]))]
                  for g in range(len(groups))]  # fmt: skip
        state: dict[str, Any] = {"partition_count": ranks if stage1 else [ranks] * len(groups)}
        if stage1:
            state |= {"zero_stage": 1, "num_comm_intervals_per_group": [len(one) for one in masters]}
            state["local_sub_partitions_of_fp32_groups"] = masters
        else:
            state["single_partition_of_fp32_groups"] = [one[0] for one in masters]
        if rigid:
            numbers = iter(range(1000))
            at = [[next(numbers) for _ in one] for one in states]
            flat = {n: one for ns, ones in zip(at, states, strict=True) for n, one in zip(ns, ones, strict=True)}
            state["base_optimizer_state"] = {"state": flat, "param_groups": [{"lr": 1e-3, "params": ns} for ns in at]}
            if layout == "stage1-rigid":
                del state["partition_count"], state["zero_stage"], state["num_comm_intervals_per_group"]
        else:
            state["base_optimizer_state"] = states if stage1 else [one[0] for one in states]
        found.append(state)
    return found


def _cut(state: State, names: list[str], ranks: int, interval: int | None) -> list[list[Tensor]]:
    """[rank][interval] of the padded group, as the two stages cut it."""
    flat = torch.cat([state[name].flatten() for name in names])
    if interval is None:  # stage_1_and_2.py: aligned to 2 elements a rank
        size, intervals = 2 * math.ceil(len(flat) / (2 * ranks)), 1
    else:
        size = math.ceil(len(flat) / ranks)
        intervals = max(1, math.ceil(size / (interval // ranks)))
        size = size if intervals == 1 else interval // ranks
    padded = torch.cat([flat, torch.zeros(size * ranks * intervals - len(flat))])
    pieces = [piece.clone() for piece in padded.split(size)]
    return [pieces[rank::ranks] for rank in range(ranks)]


def _lean(pieces: list[Tensor], rank: int, ranks: int, size: int) -> list[Tensor]:
    """Without the padding."""
    starts = [(at * ranks + rank) * len(piece) for at, piece in enumerate(pieces)]
    return [piece[: max(0, size - start)].clone() for start, piece in zip(starts, pieces, strict=True)]


class _deepspeed:
    """DeepSpeed's module of loss scalers, which a pickle names; without importing it, or where it is not installed."""

    NAMES = ("deepspeed", "deepspeed.runtime", "deepspeed.runtime.fp16", "deepspeed.runtime.fp16.loss_scaler")

    def __enter__(self) -> None:
        self.before = {name: sys.modules.get(name) for name in self.NAMES}
        for name in self.NAMES:
            sys.modules[name] = ModuleType(name)
        sys.modules[self.NAMES[-1]].DynamicLossScaler = DynamicLossScaler

    def __exit__(self, *_: object) -> None:
        for name, module in self.before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def _neox_yaml(config: Mapping[str, Any], model_parallel: int) -> str:
    rope = config["rope_parameters"]
    settings = {
        "pipe-parallel-size": 1, "model-parallel-size": model_parallel, "num-layers": config["num_hidden_layers"],
        "hidden-size": config["hidden_size"], "num-attention-heads": config["num_attention_heads"],
        "max-position-embeddings": config["max_position_embeddings"], "pos-emb": "rotary",
        "rotary-pct": rope["partial_rotary_factor"], "rotary-emb-base": rope["rope_theta"],
        "no-weight-tying": not config["tie_word_embeddings"], "gpt-j-residual": config["use_parallel_residual"],
        "layernorm_epsilon": config["layer_norm_eps"], "activation": config["hidden_act"],
    }  # fmt: skip
    return json.dumps(settings, indent=2)  # as NeoX's own, which are YAML all the same


# ---- OLMo


def write_olmo(checkpoint: Path, into: Path, *, keys: str = "name") -> None:
    """Write `checkpoint` of an Olmo2 (or Olmo) into the folder `into`.

    keys  of optim.pt: "name", as FSDP's full state has them; "number", as the plain optimizer's, named by its groups
    """
    into.mkdir(parents=True)
    config, masters, moments, count = _read(checkpoint)
    update = json.loads((checkpoint / "training/state.json").read_text())["position"]["update"]
    weights = _fused(masters)
    states = {key: _fused(moments[key]) for key in MOMENTS}
    state = {name: {"step": torch.tensor(count), **{key: states[key][name] for key in MOMENTS}} for name in weights}
    names = sorted(weights)
    if keys == "number":
        state = {names.index(name): state[name] for name in names}
        groups = [{"lr": 1e-3, "params": list(range(len(names))), "param_names": names}]
    else:
        wrapped = {name: name.replace("blocks.0.", "blocks.0._fsdp_wrapped_module.") for name in names}
        state = {wrapped[name]: one for name, one in state.items()}
        groups = [{"lr": 1e-3, "params": list(state), "param_names": list(state)}]
    torch.save(weights, into / "model.pt")
    torch.save({"state": state, "param_groups": groups}, into / "optim.pt")
    rng = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state(), "cuda": None}
    torch.save({"epoch": 0, "global_step": update, "world_size": 2, "rng": rng}, into / "train.pt")
    (into / "config.yaml").write_text(yaml.safe_dump({"run_name": "tiny", "model": _olmo_model(config)}))


def _fused(state: State) -> State:
    """By OLMo's names."""
    found = {"transformer.wte.weight": state["model.embed_tokens.weight"]}
    for name, own in (("model.norm.weight", "ln_f"), ("lm_head.weight", "ff_out")):
        if name in state:
            found[f"transformer.{own}.weight"] = state[name]
    for block in range(sum(name.endswith("o_proj.weight") for name in state)):
        layer = {n.split(".", 3)[3]: t for n, t in state.items() if n.startswith(f"model.layers.{block}.")}
        own = {
            "att_proj": torch.cat([layer[f"self_attn.{part}_proj.weight"] for part in "qkv"]),
            "ff_proj": torch.cat([layer["mlp.up_proj.weight"], layer["mlp.gate_proj.weight"]]),
            "attn_out": layer["self_attn.o_proj.weight"],
            "ff_out": layer["mlp.down_proj.weight"],
        }
        if "self_attn.q_norm.weight" in layer:
            own |= {
                "q_norm": layer["self_attn.q_norm.weight"], "k_norm": layer["self_attn.k_norm.weight"],
                "attn_norm": layer["post_attention_layernorm.weight"],
                "ff_norm": layer["post_feedforward_layernorm.weight"],
            }  # fmt: skip
        found |= {f"transformer.blocks.{block}.{name}.weight": tensor for name, tensor in own.items()}
    return found


def _olmo_model(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "d_model": config["hidden_size"], "n_heads": config["num_attention_heads"],
        "n_kv_heads": config["num_key_value_heads"], "n_layers": config["num_hidden_layers"],
        "mlp_hidden_size": 2 * config["intermediate_size"], "weight_tying": config["tie_word_embeddings"],
        "rope_theta": config["rope_parameters"]["rope_theta"], "block_type": "sequential",
        "attention_layer_norm": True, "norm_after": True, "layer_norm_eps": config.get("rms_norm_eps", 1e-5),
        "max_sequence_length": config["max_position_embeddings"], "vocab_size": config["vocab_size"],
        "embedding_size": config["vocab_size"], "eos_token_id": config["eos_token_id"],
        "pad_token_id": config["pad_token_id"], "clip_qkv": config.get("clip_qkv"),
    }  # fmt: skip


# ---- the hub's directories, which have weights alone


def write_pythia(checkpoint: Path, into: Path, *, shards: int = 1, dtype: torch.dtype = torch.float16) -> None:
    """Write `checkpoint` of a GPTNeoX as EleutherAI's repos have it: .bin, and three buffers a layer."""
    config, weights, *_ = _read(checkpoint)
    state = {name: tensor.to(dtype) for name, tensor in weights.items()}
    positions = config["max_position_embeddings"]
    for block in range(config["num_hidden_layers"]):
        start = f"gpt_neox.layers.{block}.attention."
        state[f"{start}bias"] = torch.ones(positions, positions).tril().byte()[None, None]
        state[f"{start}masked_bias"] = torch.tensor(-1e9, dtype=dtype)
        state[f"{start}rotary_emb.inv_freq"] = torch.rand(2)
    _write_bin(into, state, shards, {**config, "torch_dtype": str(dtype).removeprefix("torch.")})


def write_amber(checkpoint: Path, into: Path, *, shards: int = 3) -> None:
    """Write `checkpoint` of a Llama as LLM360's repos have it: fp32 .bin."""
    config, weights, *_ = _read(checkpoint)
    _write_bin(into, weights, shards, {**config, "torch_dtype": "float32"})


def _write_bin(into: Path, state: State, shards: int, config: Mapping[str, Any]) -> None:
    into.mkdir(parents=True)
    (into / "config.json").write_text(json.dumps({key: value for key, value in config.items() if key != "dtype"}))
    if shards == 1:
        torch.save(state, into / "pytorch_model.bin")
        return
    names = list(state)
    files = [f"pytorch_model-{number:05}-of-{shards:05}.bin" for number in range(1, shards + 1)]
    held = {file: names[at::shards] for at, file in enumerate(files)}
    for file, own in held.items():
        torch.save({name: state[name] for name in own}, into / file)
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in state.values())},
        "weight_map": {name: file for file, own in held.items() for name in own},
    }
    (into / "pytorch_model.bin.index.json").write_text(json.dumps(index))
