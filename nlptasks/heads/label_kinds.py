"""One label for a text, or any number of labels: what differs between the two."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from nlptasks.metrics.base import Counts, Metrics
from nlptasks.metrics.calibration import Likelihood, SigmoidLikelihood, SoftmaxLikelihood, log_sigmoid, log_softmax
from nlptasks.metrics.labelling import label_counts, label_scores, label_set_counts, label_set_scores
from nlptasks.types import Floats, Ints


class LabelKind(ABC):
    """The number of labels that a text may have.

    Attributes:
        problem_type: its name in a Hugging Face config.
        has_thresholds: True if every label whose probability reaches a threshold is predicted.
    """

    problem_type: ClassVar[str]
    has_thresholds: ClassVar[bool]

    @abstractmethod
    def target(self, right: Ints, classes: int) -> Ints:
        """Return the network's target for the indices of the right classes."""

    @abstractmethod
    def probabilities(self, logits: Floats, temperature: float) -> Floats:
        """Return the probabilities of classes [...,C]."""

    @abstractmethod
    def likelihood(self, logits: Floats, gold: Ints) -> Likelihood:
        """Return the likelihood of the gold labels.

        Args:
            logits: scores of the classes [N,C].
            gold: 1 for right classes, else 0 [N,C].
        """

    @abstractmethod
    def predicted(self, scores: Mapping[str, float], thresholds: Mapping[str, float]) -> tuple[str, ...]:
        """Return the predicted labels.

        Args:
            scores: the probability of every label, the most likely first.
            thresholds: the thresholds of labels; one half for a label that is missing.
        """

    @abstractmethod
    def confidences(
        self, gold: Sequence[str], predicted: Sequence[str], scores: Mapping[str, float]
    ) -> list[tuple[float, bool]]:
        """Return the probabilities in a result, each with True if its label is right."""

    @abstractmethod
    def count(self, gold: Sequence[str], predicted: Sequence[str], scores: Mapping[str, float]) -> Counts:
        """Compare predicted labels, and the probability of every label, with the gold labels."""

    @abstractmethod
    def metrics(self, counts: Counts, labels: Sequence[str]) -> Metrics:
        """Return the metrics for merged counts."""


class OneLabel(LabelKind):
    """A text has one label. The target is the index of its class [1]."""

    problem_type = "single_label_classification"
    has_thresholds = False

    def target(self, right: Ints, classes: int) -> Ints:
        return right

    def probabilities(self, logits: Floats, temperature: float) -> Floats:
        return np.exp(log_softmax(logits, temperature))

    def likelihood(self, logits: Floats, gold: Ints) -> SoftmaxLikelihood:
        return SoftmaxLikelihood(logits, gold.argmax(axis=1))

    def predicted(self, scores: Mapping[str, float], thresholds: Mapping[str, float]) -> tuple[str, ...]:
        return (next(iter(scores)),)

    def confidences(
        self, gold: Sequence[str], predicted: Sequence[str], scores: Mapping[str, float]
    ) -> list[tuple[float, bool]]:
        return [(scores[label], label in gold) for label in predicted]

    def count(self, gold: Sequence[str], predicted: Sequence[str], scores: Mapping[str, float]) -> Counts:
        return label_counts(gold[0], predicted[0] if predicted else None)

    def metrics(self, counts: Counts, labels: Sequence[str]) -> Metrics:
        return Metrics(label_scores(counts, labels), main="accuracy")


class SeveralLabels(LabelKind):
    """A text has any number of labels. The target is 1 for the right classes and 0 for the others [C]."""

    problem_type = "multi_label_classification"
    has_thresholds = True

    def target(self, right: Ints, classes: int) -> Ints:
        target = np.zeros(classes, dtype=np.int64)  # [C]
        target[right] = 1
        return target

    def probabilities(self, logits: Floats, temperature: float) -> Floats:
        return np.exp(log_sigmoid(logits, temperature))

    def likelihood(self, logits: Floats, gold: Ints) -> SigmoidLikelihood:
        return SigmoidLikelihood(logits, gold)

    def predicted(self, scores: Mapping[str, float], thresholds: Mapping[str, float]) -> tuple[str, ...]:
        return tuple(label for label, score in scores.items() if score >= thresholds.get(label, 0.5))

    def confidences(
        self, gold: Sequence[str], predicted: Sequence[str], scores: Mapping[str, float]
    ) -> list[tuple[float, bool]]:
        return [(score, label in gold) for label, score in scores.items()]

    def count(self, gold: Sequence[str], predicted: Sequence[str], scores: Mapping[str, float]) -> Counts:
        return label_set_counts(gold, predicted, scores)

    def metrics(self, counts: Counts, labels: Sequence[str]) -> Metrics:
        return Metrics(label_set_scores(counts, labels), main="micro_f1")


ONE_LABEL, SEVERAL_LABELS = OneLabel(), SeveralLabels()


def label_kind(*, several: bool) -> LabelKind:
    """Return the kind for texts that may have several labels, or for texts that have one."""
    return SEVERAL_LABELS if several else ONE_LABEL
