"""What a run will be, and what it costs in memory and on disk, before it begins."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.table import Table

from lawa.averaging.averages import Average, Window
from lawa.averaging.cost import readable
from lawa.pretrain.setup import Setup


def table(setup: Setup, run: Path) -> Table:
    """What the run will be, and what it costs in memory and on disk, before it begins."""
    config, text, parameters = setup.config, setup.text, setup.parameters
    start, updates = config.training.start, config.training.updates - config.training.start
    tokens = updates * config.tokens_per_update
    weights = 4 * parameters
    shown = Table(title=str(run), title_justify="left", show_header=False)
    model = config.model.source or config.model.preset or config.model.architecture
    shown.add_row("model", f"{model}, {parameters:,} parameters, {readable(weights)} in fp32")
    shown.add_row("text", text.told)
    read = text.epochs(updates)
    epochs = ", ".join(f"{times:.2f} epochs{f' of {name}' if len(read) > 1 else ''}" for name, times in read.items())
    after = f" after {start:,}" if start else ""
    shown.add_row(
        "training",
        f"{updates:,} updates{after} of {config.tokens_per_update:,} tokens = {tokens:,}"
        f"{f' ({epochs})' if epochs else ''} on {setup.device}{_each(setup)}",
    )
    if setup.averager is None:
        shown.add_row("averaging", "none")
    else:
        replacement = setup.averager.replacement
        for name, average in setup.averager.averages.items():
            replaces = " → replaces the weights" if replacement and name == replacement.name else ""
            shown.add_row("averaging", f"{name}: {average}{replaces}")
        cost = setup.averager.cost()
        place = " on disk" if config.averaging.placement == "disk" else ""
        shown.add_row(
            "its memory",
            f"{cost.snapshots} snapshots{place}; {readable(cost.device)} on the device, {readable(cost.host)} on the "
            f"host, {readable(cost.swap)} more while one is in place{_each(setup)}",
        )
    for name, text in _disk(setup):
        shown.add_row(name, text)
    return shown


def _each(setup: Setup) -> str:
    return f", each of {setup.ranks.world} processes" if setup.ranks.world > 1 else ""


def _disk(setup: Setup) -> Iterator[tuple[str, str]]:
    """Rows about the bytes on disk once the run is done, and in memory while a checkpoint is written."""
    config, weights = setup.config, 4 * setup.parameters
    wanted, last = config.checkpoints, config.training.updates
    first = config.training.start // wanted.every * wanted.every + wanted.every
    saves = [*range(first, last, wanted.every), last]
    kept = min(len(saves), wanted.keep or len(saves))
    resumable = min(kept, wanted.resumable)
    moments = 8 * setup.parameters  # Adam's two
    running = snapshot = held = new = 0
    if setup.averager is not None:
        # What a rank of a sharded run has is its part of the whole.
        parts = _parts(setup)
        cost = setup.averager.cost()
        if config.averaging.placement == "disk":
            kept = max(kept, min(len(saves), cost.snapshots))  # the windows' own
            running = cost.disk * parts
        else:
            snapshot, held = cost.snapshot * parts, cost.snapshots
            running = cost.disk * parts - held * snapshot
            windows = [a for a in config.averaging.named.values() if isinstance(a, Window)]
            new = min(held, sum(-(-wanted.every // window.every) for window in windows))
    state = moments + running
    averager = running + held * snapshot
    yield (
        "checkpoints",
        f"{kept} of {readable(weights)}; the latest {resumable} have {readable(state + held * snapshot)} more to go on "
        f"from ({readable(averager)} of it for averaging)",
    )
    ready = [_saved(average, saves) for average in config.averaging.named.values()]
    copies = {"all": sum(ready), "last": sum(map(bool, ready)), "none": 0}[wanted.save_averages]
    averages = f"{copies} saved average{'' if copies == 1 else 's'} and the final model"
    yield (
        "disk",
        f"{readable((kept + copies + 1) * weights + resumable * state + (held + (resumable - 1) * new) * snapshot)} "
        f"with {averages} of {readable(weights)} each",
    )
    published = sum(map(bool, ready)) if wanted.save_averages != "none" else 0
    copied = (1 + published) * weights + state + new * snapshot
    yield "while one is written", f"{readable(copied / _parts(setup))} in host memory{_each(setup)}"


def _parts(setup: Setup) -> int:
    return setup.ranks.world if setup.ranks.sharded else 1


def _saved(average: Average, saves: list[int]) -> int:
    """At how many of the checkpoints the average is ready."""
    first = average.cadence.nth(average.needed)
    return sum(first is not None and update >= first for update in saves)
