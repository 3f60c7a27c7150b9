"""LAWA in a plain PyTorch loop: two lines. Takes a few seconds on a CPU.

python examples/plain_pytorch.py
"""

import torch
from torch import nn

import lawa

VOCABULARY = 64
torch.manual_seed(0)
follows = torch.softmax(3 * torch.randn(VOCABULARY, VOCABULARY), dim=1)  # a made-up language: which token follows which


def batch(sequences: int, length: int = 32) -> torch.Tensor:
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


model = nn.Sequential(nn.Embedding(VOCABULARY, 64), nn.GELU(), nn.Linear(64, VOCABULARY))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
held_out = batch(256)

averager = lawa.WeightAverager(model, optimizer, mode="evaluate", every=20, window=10)  # the first line

for t in range(1, 601):
    loss_of(model, batch(4)).backward()
    optimizer.step()
    optimizer.zero_grad()
    averager.update()  # the second line
    if t % 100 == 0:
        plain = held_out_loss()
        with averager.averaged():  # the model has the average's weights; its own come back
            print(f"update {t}: loss {plain:.4f}, of the average of {averager.count()} snapshots {held_out_loss():.4f}")
