"""LAWA in a Lightning trainer: one callback. Takes a few seconds on a CPU.

python examples/lightning_trainer.py
"""

import logging
import warnings

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lawa.integrations.lightning import LawaCallback

VOCABULARY = 64
warnings.filterwarnings("ignore", module="lightning.pytorch")  # advice about workers and logging
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
torch.manual_seed(0)
follows = torch.softmax(3 * torch.randn(VOCABULARY, VOCABULARY), dim=1)  # a made-up language: which token follows which


def text(sequences: int, length: int = 32) -> TensorDataset:
    """Tokens, (sequences, length)."""
    tokens = [torch.randint(VOCABULARY, (sequences,))]
    while len(tokens) < length:
        tokens.append(torch.multinomial(follows[tokens[-1]], 1).squeeze(1))
    return TensorDataset(torch.stack(tokens, dim=1))


class LanguageModel(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Embedding(VOCABULARY, 64), nn.GELU(), nn.Linear(64, VOCABULARY))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        (tokens,) = batch
        return nn.functional.cross_entropy(self.layers(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.02)


trainer = pl.Trainer(
    max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
    enable_model_summary=False,
    callbacks=[LawaCallback(mode="evaluate", every=20, window=10)],  # the one line
)  # fmt: skip
trainer.fit(LanguageModel(), DataLoader(text(2400), batch_size=4), DataLoader(text(256), batch_size=64))
for name, value in sorted(trainer.callback_metrics.items(), reverse=True):
    print(f"{name} {value:.4f}")  # val_loss, and lawa/val_loss of the average of the last ten snapshots
