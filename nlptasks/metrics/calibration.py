"""From logits to calibrated probabilities: softmax and sigmoid at a temperature, fitting it, and the calibration error.

A temperature divides the logits (Guo et al. 2017, On Calibration of Modern Neural Networks): above 1 it lowers the confidence,
below 1 it raises it, and the most likely class stays the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from nlptasks.errors import BackendError
from nlptasks.types import Floats, Ints

BINS = 15
"""Bins of equal width in `calibration_error`."""

_COLDEST, _HOTTEST = 0.05, 20.0
_PRIOR = 10.0
"""Cost of a temperature of e, in nats, so that a few rows alone do not move it away from 1."""

TEMPERATURE_DOC = "divides the logits before they become probabilities; 1 if it was not fitted"


def checked(logits: Floats) -> Floats:
    """Return the logits if all are finite.

    Raises:
        BackendError: one is not finite.
    """
    if not np.isfinite(logits).all():
        raise BackendError(
            "the model", "returned logits that are not finite", "train again with a lower `lr`, or in fp32"
        )
    return logits


def log_softmax(logits: Floats, temperature: float = 1.0) -> Floats:
    """Return log-probabilities that sum to 1 over the last axis [...,C]."""
    scaled = logits / temperature
    shifted = scaled - scaled.max(axis=-1, keepdims=True, initial=-np.inf)
    normal: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normal


def log_sigmoid(logits: Floats, temperature: float = 1.0) -> Floats:
    """Return log-probabilities of independent classes [...]."""
    values: Floats = -np.logaddexp(0.0, -logits / temperature).astype(np.float32)
    return values


class Likelihood(Protocol):
    """How likely the gold answers are, as a function of the temperature."""

    def nll(self, temperature: float) -> float:
        """Return the summed negative log-likelihood of the gold answers, in nats."""


@dataclass(frozen=True)
class SoftmaxLikelihood:
    """Of classes that exclude each other.

    Attributes:
        logits: scores of the classes, after windows are merged [N,C].
        gold: the right class of each row [N].
    """

    logits: Floats
    gold: Ints

    def nll(self, temperature: float) -> float:
        rows = np.arange(len(self.gold))
        return -float(log_softmax(self.logits, temperature)[rows, self.gold].sum(dtype=np.float64))


@dataclass(frozen=True)
class SigmoidLikelihood:
    """Of independent classes.

    Attributes:
        logits: scores of the classes, after windows are merged [N,C].
        gold: 1 for right classes, else 0 [N,C].
    """

    logits: Floats
    gold: Ints

    def nll(self, temperature: float) -> float:
        signed = np.where(self.gold == 1, self.logits, -self.logits)
        return -float(log_sigmoid(signed, temperature).sum(dtype=np.float64))


@dataclass(frozen=True)
class SpanLikelihood:
    """Of spans of a text, or of no span at all, whose logit is 0.

    Attributes:
        candidates: for each row the logits of all spans, in any shape.
        gold: for each row the logits of the right spans; 0 for no span.
        none_allowed: True if no span is an answer, too.
    """

    candidates: Sequence[Floats]
    gold: Sequence[Floats]
    none_allowed: bool

    def nll(self, temperature: float) -> float:
        return sum(
            log_total(logits / temperature, none_allowed=self.none_allowed) - log_sum(right / temperature)
            for logits, right in zip(self.candidates, self.gold, strict=True)
        )


def log_sum(values: Floats) -> float:
    """Return the logarithm of the sum of exponentials."""
    highest = values.max(initial=-np.inf)
    return float(highest + np.log(np.exp(values - highest).sum())) if np.isfinite(highest) else -np.inf


def log_total(logits: Floats, *, none_allowed: bool) -> float:
    """Return the log partition function of spans; no span counts 1 if it is allowed."""
    total = log_sum(logits)
    return float(np.logaddexp(total, 0.0)) if none_allowed else total


def fit_temperature(likelihood: Likelihood) -> float:
    """Return the temperature that minimises the negative log-likelihood; 1 if the gold answers are impossible.

    It does not use the training loss: label smoothing and class weights would distort it.
    """
    from scipy.optimize import minimize_scalar  # heavy, and only training needs it

    def cost(log: float) -> float:
        return likelihood.nll(math.exp(log)) + _PRIOR * log**2

    if not math.isfinite(likelihood.nll(1.0)):
        return 1.0
    found = minimize_scalar(cost, bounds=(math.log(_COLDEST), math.log(_HOTTEST)), method="bounded")
    return round(math.exp(float(found.x)), 4)


def calibration_error(scored: Sequence[tuple[float, bool]]) -> float | None:
    """Return the expected calibration error: the mean gap between score and accuracy in 15 bins of equal width.

    Args:
        scored: the score of each answer, in 0..1, and True if the answer is right.

    Returns:
        A share in 0..1; None if there is no answer.
    """
    if not scored:
        return None
    scores, right = (np.array(column, dtype=np.float64) for column in zip(*scored, strict=True))
    bins = np.minimum((scores * BINS).astype(np.int64), BINS - 1)
    gaps = np.bincount(bins, weights=scores - right, minlength=BINS)  # [BINS] each bin's gap times its size
    return float(np.abs(gaps).sum() / len(scored))
