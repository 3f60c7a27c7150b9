"""What real DeepSpeed writes of a model whose modules and optimizer groups are GPT-NeoX's, and what it held then.

    torchrun --nproc-per-node R zero_written.py FOLDER

FOLDER/WAY/native is the checkpoint with layer files beside it; FOLDER/WAY/{model,optimizer}.safetensors what DeepSpeed
itself gathers of every parameter, under transformers' names.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn

from launching import run_to_the_end

BF16 = {"bf16": {"enabled": True}}
WAYS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "elastic": {"zero": {"elastic_checkpoint": True}},
    "bf16": BF16,
    "bf16 elastic": {"zero": {"elastic_checkpoint": True}, **BF16},
    "bf16, fp32 gradients": {**BF16, "data_types": {"grad_accum_dtype": "fp32"}},
}
WIDTH, VOCABULARY = 6, 11


def named(**modules: nn.Module) -> nn.Module:
    module = nn.Module()
    for name, child in modules.items():
        module.add_module(name, child)
    return module


def block() -> nn.Module:
    return named(
        input_layernorm=nn.LayerNorm(WIDTH),
        attention=named(query_key_value=nn.Linear(WIDTH, 3 * WIDTH), dense=nn.Linear(WIDTH, WIDTH)),
        post_attention_layernorm=nn.LayerNorm(WIDTH),
        mlp=named(dense_h_to_4h=nn.Linear(WIDTH, 4 * WIDTH), dense_4h_to_h=nn.Linear(4 * WIDTH, WIDTH)),
    )


class Pipe(nn.Module):
    """Layers under their numbers, as DeepSpeed's PipelineModule registers them; 1 and 4 are functions."""

    def __init__(self) -> None:
        super().__init__()
        layers = {
            0: named(word_embeddings=nn.Embedding(VOCABULARY, WIDTH)),
            2: block(),
            3: block(),
            5: named(norm=nn.LayerNorm(WIDTH)),
            6: named(final_linear=nn.Linear(WIDTH, VOCABULARY, bias=False)),
        }
        for number, layer in layers.items():
            self.add_module(str(number), layer)

    def forward(self, tokens: Tensor) -> Tensor:
        layers: Any = dict(self.named_children())
        x = layers["0"].word_embeddings(tokens)
        for number in "23":
            own = layers[number]
            q, k, v = own.attention.query_key_value(own.input_layernorm(x)).chunk(3, -1)
            hidden = own.mlp.dense_h_to_4h(own.post_attention_layernorm(x)).relu()
            x = x + own.attention.dense(q * k.tanh() + v) + own.mlp.dense_4h_to_h(hidden)
        return layers["6"].final_linear(layers["5"].norm(x))


def groups_of(model: nn.Module) -> list[dict[str, Any]]:
    """By the rule of megatron/model/utils.py get_params_for_weight_decay_optimization."""
    decaying: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            (plain if isinstance(module, nn.LayerNorm) or name == "bias" else decaying).append(parameter)
    return [{"params": decaying}, {"params": plain, "weight_decay": 0.0}]


def in_transformers(name: str) -> str:
    layer, short = name.split(".", 1)
    ends = {"word_embeddings": "gpt_neox.embed_in", "norm": "gpt_neox.final_layer_norm", "final_linear": "lm_head"}
    module, _, kind = short.rpartition(".")
    return f"{ends[module]}.{kind}" if module in ends else f"gpt_neox.layers.{int(layer) - 2}.{short}"


def write(folder: Path, way: dict[str, Any]) -> None:
    from contracts.adapters.deepspeed import deepspeed, engine_of

    torch.manual_seed(0)
    model = Pipe()
    engine = engine_of(model, 1, torch.optim.AdamW(groups_of(model), lr=1e-2, weight_decay=0.1), **way)
    for t in range(3):
        tokens = torch.randint(0, VOCABULARY, (4, 7), generator=torch.Generator().manual_seed(9 * dist.get_rank() + t))
        logits = engine(tokens[:, :-1]).float()
        engine.backward(nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()))
        engine.step()
    engine.save_checkpoint(str(folder), "native", client_state={"iteration": 3})
    masters: dict[str, Tensor] = {}
    moments: dict[str, Tensor] = {}
    get: Any = deepspeed.utils
    if hasattr(engine.optimizer, "_hp_optimizer_states_linked"):  # 0.19.8 does it when the first group has stepped
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()
    for name, parameter in engine.module.named_parameters():
        own = in_transformers(name)
        masters[own.replace("lm_head", "embed_out")] = get.safe_get_full_fp32_param(parameter).clone()
        for key in ("exp_avg", "exp_avg_sq"):
            moments[f"{key}.{own}"] = get.safe_get_full_optimizer_state(parameter, key).clone()
    if dist.get_rank() == 0:
        save_file(masters, folder / "model.safetensors")
        save_file(moments, folder / "optimizer.safetensors")
        for number, layer in engine.module.named_children():
            file = f"layer_{int(number):02}-model_00-model_states.pt"
            torch.save({name: tensor.clone() for name, tensor in layer.state_dict().items()}, folder / "native" / file)
    dist.barrier()


def main() -> None:
    dist.init_process_group("gloo")
    for name, way in WAYS.items():
        write(Path(sys.argv[1]) / name, way)


if __name__ == "__main__":
    run_to_the_end(main)
