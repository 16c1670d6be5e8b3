"""Options of heads that learn classes: class weights and label smoothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nlptasks.config import ABOVE_0, option
from nlptasks.errors import UsageError, did_you_mean, quote

NO_WEIGHTS, BALANCED = "none", "balanced"
SMOOTHING_DOC = "label smoothing: probability that the target spreads over all classes, in 0..1"


def weights_option(more: str = "") -> Any:
    """Return a field for class weights, whose type is ``str | Mapping[str, float]``.

    Args:
        more: what the labels are, for its documentation.
    """
    doc = "class weights in the loss: none, balanced (rare classes weigh more), or the weight of each label (1 for the others)"
    return option(NO_WEIGHTS, doc + more, choices=(NO_WEIGHTS, BALANCED), within=ABOVE_0)


def class_weights(
    given: str | Mapping[str, float], counts: Mapping[str, int], *, where: str = "class_weights"
) -> dict[str, float]:
    """Return the weight of each class.

    Args:
        given: ``none``; ``balanced`` for N / (C * n), with n of the N examples of all C classes that occur; or the weight of
            each label, with 1 for the others.
        counts: number of training examples of each class.
        where: name of the option, for messages.

    Raises:
        UsageError: it is another string, or an unknown label has a weight.
    """
    if isinstance(given, str) and given not in (NO_WEIGHTS, BALANCED):
        raise UsageError(where, f"is {quote(given)}", f"use {NO_WEIGHTS}, {BALANCED} or a weight for each label")
    weights = dict.fromkeys(counts, 1.0)
    if given == BALANCED:
        present = {label: count for label, count in counts.items() if count}
        mean = sum(present.values()) / max(1, len(present))
        return weights | {label: mean / count for label, count in present.items()}
    named = {} if isinstance(given, str) else given
    for label in named:
        if label not in weights:
            raise UsageError(where, f"has the unknown label {quote(label)}", did_you_mean(label, weights))
    return weights | dict(named)
