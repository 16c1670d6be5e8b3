"""Who hears how a long run goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Reporter(Protocol):
    """Hears how a long run goes; the command line draws it."""

    def note(self, message: str) -> None:
        """A remark for the user, one line."""

    def step(self, done: int, total: int, head: str, loss: float) -> None:
        """After each optimizer step: steps done, steps in all, the head that learned, the mean loss of the step."""

    def evaluated(self, epoch: int, metrics: Mapping[str, float], best: bool) -> None:
        """After each evaluation on dev: the epoch, from 1, the main metrics (``f1``; of several heads ``ner f1``), and whether
        the weights are the best so far.
        """


class Silent:
    """The reporter that says nothing."""

    def note(self, message: str) -> None:
        """Nothing."""

    def step(self, done: int, total: int, head: str, loss: float) -> None:
        """Nothing."""

    def evaluated(self, epoch: int, metrics: Mapping[str, float], best: bool) -> None:
        """Nothing."""
