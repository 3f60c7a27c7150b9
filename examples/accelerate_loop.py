"""LAWA in a loop that Accelerate prepared: two lines. Takes a few seconds on a CPU, on one process or several.

python examples/accelerate_loop.py
torchrun --nproc-per-node 2 examples/accelerate_loop.py
"""

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from lawa.integrations.accelerate import AcceleratedAverager

VOCABULARY = 64
torch.manual_seed(0)
follows = torch.softmax(3 * torch.randn(VOCABULARY, VOCABULARY), dim=1)  # a made-up language: which token follows which


def text(sequences: int, length: int = 32) -> torch.Tensor:
    """Tokens, (sequences, length)."""
    tokens = [torch.randint(VOCABULARY, (sequences,))]
    while len(tokens) < length:
        tokens.append(torch.multinomial(follows[tokens[-1]], 1).squeeze(1))
    return torch.stack(tokens, dim=1)


def loss_of(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def held_out_loss() -> float:
    with torch.no_grad():
        return loss_of(model, held_out).item()


accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
model = nn.Sequential(nn.Embedding(VOCABULARY, 64), nn.GELU(), nn.Linear(64, VOCABULARY))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
loader, held_out = DataLoader(list(text(2400)), batch_size=2), text(256)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

averager = AcceleratedAverager(accelerator, model, optimizer, mode="evaluate", every=20, window=10)  # the first line

for batch in loader:
    with accelerator.accumulate(model):
        accelerator.backward(loss_of(model, batch))
        optimizer.step()
        optimizer.zero_grad()
        averager.update()  # the second line: counts where the optimizer stepped

plain = held_out_loss()
with averager.averaged():  # the model has the average's weights; its own come back
    accelerator.print(f"update {averager.step}: loss {plain:.4f}, of the average {held_out_loss():.4f}")
