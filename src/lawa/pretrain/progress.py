"""What a person sees while a run trains: a bar on a terminal, plain lines elsewhere. All on stderr."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from lawa.averaging.cost import readable


class Progress:
    """Loss, averages, tokens a second and time left of one run.

    updates             how many the run has
    tokens_per_update   tokens an update
    """

    def __init__(self, *, updates: int, tokens_per_update: int, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self.updates = updates
        self.tokens_per_update = tokens_per_update
        self._losses: dict[str, float] = {}
        self._since = (time.monotonic(), 0)
        self._bar = RichProgress(
            TextColumn("update"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(), console=self.console, transient=True, disable=not self.console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("train", total=updates, text="")

    @contextmanager
    def running(self, done: int) -> Iterator[None]:
        """Show the bar within the block; `done` updates are behind already."""
        self._since = (time.monotonic(), done)
        self._bar.update(self._task, completed=done)
        with self._bar:
            yield

    def trained(self, t: int, loss: float) -> None:
        began, done = self._since
        rate = (t - done) * self.tokens_per_update / max(time.monotonic() - began, 1e-9)
        averages = "  ".join(f"{name} {value:.3f}" for name, value in self._losses.items())
        text = f"loss {loss:.3f}  {averages}  {rate:,.0f} tokens/s"
        self._bar.update(self._task, completed=t, text=text)

    def evaluated(self, t: int, losses: Mapping[str, float]) -> None:
        self._losses = dict(losses)
        began, done = self._since
        left = (time.monotonic() - began) / max(t - done, 1) * (self.updates - t)
        averages = "  ".join(f"{name} {value:.4f}" for name, value in losses.items())
        self._line(f"update {t:>6}/{self.updates}  validation: {averages}  ({_clock(left)} left)")

    def replaced(self, t: int, name: str, *, applied: bool, loss: float | None) -> None:
        if not applied:
            self._line(f"update {t:>6}/{self.updates}  replacement by {name!r} skipped: the average is not finite")
        elif loss is not None:
            self._line(f"update {t:>6}/{self.updates}  weights replaced by {name!r}: {loss:.4f}")

    def _line(self, text: str) -> None:
        if not self.console.is_terminal:
            self.console.print(text, soft_wrap=True, markup=False)


@contextmanager
def tokenizing(console: Console) -> Iterator[Callable[[int, int | None], None]]:
    """A callback for the token store's (bytes done, bytes in all); shown only when there is something to tokenize."""
    bar = RichProgress(
        TextColumn("tokenizing"), BarColumn(), DownloadColumn(), TimeRemainingColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip
    task = bar.add_task("tokenize", total=None, visible=False)

    def progress(done: int, total: int | None) -> None:
        bar.update(task, completed=done, total=total, visible=True)
        if total is not None and done == total and not console.is_terminal:
            console.print(f"tokenized {readable(total)} of text")

    with bar:
        yield progress


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
