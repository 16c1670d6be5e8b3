"""What a training run is about: the heads that learn, what they learn from, where the run stands, and what it came to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from accelerate import Accelerator

from nlptasks.config import TrainSettings
from nlptasks.heads.base import Head
from nlptasks.inference.batching import Unit
from nlptasks.models.model import Model
from nlptasks.text.windowing import Tokenizer
from nlptasks.training.callbacks import Reporter
from nlptasks.types import Row


@dataclass(frozen=True)
class Subject:
    """What one head learns.

    Attributes:
        name: the head's name.
        head: the head.
        rows: rows by part of the data.
        examples: their examples.
        units: the training examples that have tokens, cut into windows.
        rate: the highest learning rate of the head's own layers.
        weight: how often it has its turn, in relation to the others.
    """

    name: str
    head: Head
    rows: Mapping[str, Sequence[Row]]
    examples: Mapping[str, Sequence[Any]]
    units: Sequence[Unit]
    rate: float
    weight: float


@dataclass(frozen=True)
class Lesson:
    """What is learned, and how.

    Attributes:
        model: the backbone and the heads that learn.
        subjects: what each of them learns.
        tokenizer: the backbone's.
        settings: with everything chosen.
        accelerator: this process among all that train.
        reporter: hears how it goes.
        identity: what the weights are a function of; a checkpoint of another identity is another run's.
    """

    model: Model
    subjects: Sequence[Subject]
    tokenizer: Tokenizer
    settings: TrainSettings
    accelerator: Accelerator
    reporter: Reporter
    identity: Mapping[str, Any]

    def of(self, name: str) -> Subject:
        """What a head learns."""
        return next(subject for subject in self.subjects if subject.name == name)

    def labelled(self, values: Mapping[str, float]) -> dict[str, float]:
        """Values of the heads' main metrics by what they are called: ``f1``, or ``ner f1`` where several learn."""
        several = len(self.subjects) > 1
        return {
            f"{subject.name} {subject.head.main_metric}" if several else subject.head.main_metric: values[subject.name]
            for subject in self.subjects
        }


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        epoch: epochs that are done, evaluation included.
        step: steps done in the epoch after them.
        loss: summed over these steps, by head.
        count: what it is a sum over.
        best_epoch: the epoch whose weights are kept, from 1; 0 before the first evaluation.
        history: of each epoch its number, and by head the mean loss (of heads that had a turn) and the main metric on dev.
        seconds: spent so far.
        learning_seconds: of these, spent on steps.
    """

    epoch: int = 0
    step: int = 0
    loss: dict[str, float] = field(default_factory=dict)
    count: dict[str, float] = field(default_factory=dict)
    best_epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    learning_seconds: float = 0.0

    def best(self, name: str) -> float:
        """A head's highest main metric on dev so far."""
        return max((own for epoch in self.history if not math.isnan(own := epoch["dev"][name])), default=math.nan)

    def relative(self, epoch: int) -> float:
        """The mean over the heads of the main metric on dev after an epoch (from 1), in relation to each one's best so far."""
        values = self.history[epoch - 1]["dev"]
        return sum(_share(value, self.best(name)) for name, value in values.items()) / len(values)


@dataclass(frozen=True)
class Outcome:
    """What a head came to.

    Attributes:
        metrics: metrics of the kept weights by part of the data.
        fitted: what was fitted to the answers of these weights, by its name in the head's config.
        calibration_error: the expected calibration error on each of these parts, ``before`` that and ``after``.
    """

    metrics: Mapping[str, Mapping[str, float]]
    fitted: Mapping[str, Any]
    calibration_error: Mapping[str, Mapping[str, float | None]]


def _share(value: float, best: float) -> float:
    """A value as a share of the best one; no share of what is not above 0, or of what is no number."""
    if value == best:
        return 1.0
    return value / best if best > 0 and not math.isnan(value) else 0.0
