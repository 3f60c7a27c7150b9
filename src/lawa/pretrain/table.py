"""What a run will be, and what it costs in memory and on disk, before it begins."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.table import Table

from lawa.averaging.cost import readable
from lawa.pretrain.setup import Setup


def table(setup: Setup, run: Path) -> Table:
    """What the run will be, and what it costs in memory and on disk, before it begins."""
    config, store, parameters = setup.config, setup.store, setup.parameters
    tokens = config.training.updates * config.tokens_per_update
    weights = 4 * parameters
    shown = Table(title=str(run), title_justify="left", show_header=False)
    model = config.model.preset or config.model.architecture
    shown.add_row("model", f"{model}, {parameters:,} parameters, {readable(weights)} in fp32")
    shown.add_row(
        "text",
        f"{len(store.train):,} tokens, vocabulary {store.vocab_size:,}; held out {len(store.validation):,} tokens",
    )
    shown.add_row(
        "training",
        f"{config.training.updates:,} updates of {config.tokens_per_update:,} tokens = {tokens:,} "
        f"({tokens / len(store.train):.2f} epochs) on {setup.device}",
    )
    saved = 0
    if setup.averager is None:
        shown.add_row("averaging", "none")
    else:
        replacement = setup.averager.replacement
        for name, average in setup.averager.averages.items():
            replaces = " → replaces the weights" if replacement and name == replacement.name else ""
            shown.add_row("averaging", f"{name}: {average}{replaces}")
        cost = setup.averager.cost()
        saved = cost.disk
        shown.add_row(
            "its memory",
            f"{cost.snapshots} snapshots; {readable(cost.device)} on the device, {readable(cost.host)} on the host, "
            f"{readable(cost.swap)} more while one is in place",
        )
    for name, text in _disk(setup, saved):
        shown.add_row(name, text)
    return shown


def _disk(setup: Setup, saved: int) -> Iterator[tuple[str, str]]:
    """Rows about the bytes on disk once the run is done; `saved` of them are the averager's state."""
    config, weights = setup.config, 4 * setup.parameters
    last, every = config.training.updates, config.checkpoints.every
    saves = [*range(every, last, every), last]
    kept = min(len(saves), config.checkpoints.keep or len(saves))
    state = 8 * setup.parameters + saved  # Adam's two moments
    yield (
        "checkpoints",
        f"{kept} of {readable(weights)}; the latest has {readable(state)} more to go on from "
        f"({readable(saved)} of it for averaging)",
    )
    copies = 0
    if config.checkpoints.save_averages != "none":
        for average in config.averaging.named.values():
            first = average.cadence.nth(average.needed) or last
            ready = sum(update >= first for update in saves)
            copies += ready if config.checkpoints.save_averages == "all" else min(ready, 1)
    averages = f"{copies} saved average{'' if copies == 1 else 's'} and the final model"
    yield (
        "disk",
        f"{readable((kept + copies + 1) * weights + state)} with {averages} of {readable(weights)} each",
    )
