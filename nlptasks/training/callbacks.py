"""Callbacks: who is told about the progress of a long run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class TrainingCallback(Protocol):
    """Is told about the progress of a run; the command line draws it."""

    def note(self, message: str) -> None:
        """Take a message for the user, one line."""

    def step(self, done: int, total: int, head: str, loss: float) -> None:
        """Take the result of an optimizer step: completed steps, all steps, the head, and the mean loss of the step."""

    def evaluated(self, epoch: int, metrics: Mapping[str, float], best: bool) -> None:
        """Take the result of an evaluation on dev.

        Args:
            epoch: the epoch, from 1.
            metrics: the main metrics: ``f1``, or ``ner f1`` if several heads are trained.
            best: True if the weights are the best so far.
        """


class NoOpCallback:
    """Ignores everything."""

    def note(self, message: str) -> None:
        """Do nothing."""

    def step(self, done: int, total: int, head: str, loss: float) -> None:
        """Do nothing."""

    def evaluated(self, epoch: int, metrics: Mapping[str, float], best: bool) -> None:
        """Do nothing."""
