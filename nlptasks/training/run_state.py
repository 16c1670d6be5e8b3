"""A training run: the tasks that are trained, what they are trained on, the state of the run, and its outcome."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from accelerate import Accelerator

from nlptasks.config import TrainSettings
from nlptasks.heads.base import AnyHead
from nlptasks.inference.batching import Instance
from nlptasks.models.model import Model
from nlptasks.networks.base import Network
from nlptasks.text.windows import Tokenizer
from nlptasks.training.callbacks import TrainingCallback
from nlptasks.types import Row


@dataclass(frozen=True)
class TrainTask:
    """A head to train, with its data.

    Attributes:
        name: the head's name.
        head: the head.
        network: its network.
        rows: rows by part of the data.
        examples: their examples.
        instances: the training examples that have tokens, cut into windows.
        rate: highest learning rate of the network.
        weight: relative sampling weight.
    """

    name: str
    head: AnyHead
    network: Network
    rows: Mapping[str, Sequence[Row]]
    examples: Mapping[str, Sequence[Any]]
    instances: Sequence[Instance]
    rate: float
    weight: float


@dataclass(frozen=True)
class TrainingRun:
    """What is trained, and how.

    Attributes:
        model: the backbone and the heads.
        tasks: the heads to train, with their data.
        tokenizer: the backbone's.
        settings: complete settings.
        accelerator: this process among all that train.
        callback: is told about the progress.
        fingerprint: everything that the weights are a function of; a checkpoint with another fingerprint is of another run.
    """

    model: Model
    tasks: Sequence[TrainTask]
    tokenizer: Tokenizer
    settings: TrainSettings
    accelerator: Accelerator
    callback: TrainingCallback
    fingerprint: Mapping[str, Any]

    def task(self, name: str) -> TrainTask:
        """Return the task of a head."""
        return next(task for task in self.tasks if task.name == name)


@dataclass
class TrainState:
    """The state of a run.

    Attributes:
        epoch: completed epochs, with their evaluation.
        step: completed steps of the current epoch.
        loss: summed over these steps, by head.
        count: the count that it is a sum over.
        best_epoch: the epoch whose weights are kept, from 1; 0 before the first evaluation.
        main_metrics: name of each head's main metric, known after the first evaluation.
        history: for each epoch its number, and by head the mean loss (of heads that had a step) and the main metric on dev.
        seconds: time spent so far.
        learning_seconds: time spent on steps.
    """

    epoch: int = 0
    step: int = 0
    loss: dict[str, float] = field(default_factory=dict)
    count: dict[str, float] = field(default_factory=dict)
    best_epoch: int = 0
    main_metrics: dict[str, str] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    learning_seconds: float = 0.0

    def best(self, name: str) -> float:
        """Return a head's highest main metric on dev so far."""
        return max((own for epoch in self.history if not math.isnan(own := epoch["dev"][name])), default=math.nan)

    def relative(self, epoch: int) -> float:
        """Return the mean over the heads of the main metric after an epoch (from 1), each relative to its best so far."""
        values = self.history[epoch - 1]["dev"]
        return sum(_share(value, self.best(name)) for name, value in values.items()) / len(values)

    def labelled(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return main metrics by their names for people: ``f1``, or ``ner f1`` if several heads are trained."""
        several = len(self.main_metrics) > 1
        names = {name: f"{name} {metric}" if several else metric for name, metric in self.main_metrics.items()}
        return {names[name]: value for name, value in values.items()}


@dataclass(frozen=True)
class HeadOutcome:
    """The outcome of a run for one head.

    Attributes:
        main_metric: name of the metric that training maximised.
        metrics: metrics of the kept weights by part of the data.
        signature: how they were computed, where the numbers alone do not say it.
        fitted: config fields that were fitted to the outputs of these weights.
        calibration_error: expected calibration error on each of these parts, ``before`` and ``after`` that.
    """

    main_metric: str
    metrics: Mapping[str, Mapping[str, float]]
    signature: str
    fitted: Mapping[str, Any]
    calibration_error: Mapping[str, Mapping[str, float | None]]


def _share(value: float, best: float) -> float:
    """Return a value relative to the best one; 0 if there is no positive best, or the value is no number."""
    if value == best:
        return 1.0
    return value / best if best > 0 and not math.isnan(value) else 0.0
