"""From logits to probabilities that mean something: softmax and sigmoid at a temperature, fitting it, and what is left to wish.

A temperature T divides the logits (Guo et al. 2017, On Calibration of Modern Neural Networks): above 1 it makes a head less sure,
below 1 surer, and never changes which class is the most likely one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from nlptasks.errors import BackendError
from nlptasks.types import Floats

BINS = 15
"""Bins of equal width in `calibration_error`."""

_COLDEST, _HOTTEST = 0.05, 20.0
_DOUBT = 10.0
"""What a temperature costs for being far from 1, in nats at T = e: a few rows alone do not move it."""

TEMPERATURE_DOC = "what logits are divided by before they become probabilities; 1 if it was not fitted"


def checked(logits: Floats) -> Floats:
    """The logits, if every one is a number.

    Raises:
        BackendError: one is not finite.
    """
    if not np.isfinite(logits).all():
        raise BackendError("the model", "gave logits that are not finite", "train again with a lower --lr, or in fp32")
    return logits


def log_softmax(logits: Floats, temperature: float = 1.0) -> Floats:
    """Logarithms of probabilities that add up to 1 along the last axis [...,C]."""
    scaled = logits / temperature
    shifted = scaled - scaled.max(axis=-1, keepdims=True, initial=-np.inf)
    normal: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normal


def log_sigmoid(logits: Floats, temperature: float = 1.0) -> Floats:
    """Logarithms of the probabilities of independent classes [...]."""
    values: Floats = -np.logaddexp(0.0, -logits / temperature).astype(np.float32)
    return values


def fit_temperature(surprise: Callable[[float], float]) -> float:
    """The temperature at which gold answers surprise least.

    Args:
        surprise: the summed negative log-likelihood of the gold answers, in nats, at a temperature.

    Returns:
        The temperature; 1 where the gold answers are impossible.
    """
    from scipy.optimize import minimize_scalar  # heavy, and only training needs it

    def cost(log: float) -> float:
        return surprise(math.exp(log)) + _DOUBT * log**2

    if not math.isfinite(surprise(1.0)):
        return 1.0
    found = minimize_scalar(cost, bounds=(math.log(_COLDEST), math.log(_HOTTEST)), method="bounded")
    return round(math.exp(float(found.x)), 4)


def calibration_error(scored: Sequence[tuple[float, bool]]) -> float | None:
    """Expected calibration error: how far scores are from how often they are right, on average, in 15 bins of equal width.

    Args:
        scored: the score of each answer, in 0..1, and whether it is right.

    Returns:
        A share in 0..1; None if there is no answer.
    """
    if not scored:
        return None
    scores, right = (np.array(column, dtype=np.float64) for column in zip(*scored, strict=True))
    bins = np.minimum((scores * BINS).astype(np.int64), BINS - 1)
    gaps = np.bincount(bins, weights=scores - right, minlength=BINS)  # [BINS] each bin's gap times its size
    return float(np.abs(gaps).sum() / len(scored))
