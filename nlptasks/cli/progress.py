"""Progress of training on stderr: a bar with the remaining time on a terminal, and always a line for each epoch."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import TracebackType

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from nlptasks.cli.common import as_options, printable


class ProgressBar:
    """A training callback that draws a progress bar; a context manager."""

    def __init__(self) -> None:
        console = Console(file=sys.stderr, highlight=False)
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps, elapsed"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[live]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._losses: dict[str, float] = {}
        self._metrics = ""

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def note(self, message: str) -> None:
        """Print a line above the bar."""
        text = as_options(message, click.get_current_context().command)
        self._bar.console.print(printable(text), markup=False, soft_wrap=True)

    def step(self, done: int, total: int, head: str, loss: float) -> None:
        """Move the bar."""
        if self._task is None:
            self._task = self._bar.add_task("", total=total, completed=done, live="")
        self._losses[head] = loss
        losses = self._losses if len(self._losses) > 1 else {"": loss}
        live = ", ".join(f"{name} {value:.3f}".lstrip() for name, value in losses.items())
        self._bar.update(self._task, completed=done, live=f"loss {live} {self._metrics}")

    def evaluated(self, epoch: int, metrics: Mapping[str, float], best: bool) -> None:
        """Print a line for the epoch."""
        self._metrics = "dev " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        self.note(f"epoch {epoch}: {self._metrics}{' (best)' if best else ''}")
