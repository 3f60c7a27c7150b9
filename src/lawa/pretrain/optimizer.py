"""AdamW with the field's two parameter groups."""

from __future__ import annotations

import torch
from torch import nn

from lawa.pretrain.sections.training import TrainingConfig


def make_optimizer(model: nn.Module, training: TrainingConfig) -> torch.optim.AdamW:
    """Weight decay on what training.decays says, in a group of its own."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    decays = {
        "matrices": lambda p: p.dim() >= 2,
        "all": lambda p: True,
        "no_embeddings": lambda p: id(p) not in embeddings,
    }[training.decays]
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if decays(p)], "weight_decay": training.weight_decay},
        {"params": [p for p in parameters if not decays(p)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=training.lr,
        betas=(training.beta1, training.beta2),
        eps=training.eps,
        fused=True,
    )
