"""Options of heads that learn classes: class weights and label smoothing."""

from __future__ import annotations

import math
from collections.abc import Mapping

from nlptasks.errors import UsageError, did_you_mean, quote

NO_WEIGHTS, BALANCED = "none", "balanced"
WEIGHTS_DOC = (
    "class weights in the loss: none, balanced (rare classes weigh more), or LABEL:WEIGHT,... (1 for the others)"
)
SMOOTHING_DOC = "label smoothing: probability that the target spreads over all classes, in 0..1"
_FORM = "use none, balanced or LABEL:WEIGHT,LABEL:WEIGHT"


def class_weights(option: str, counts: Mapping[str, int], *, where: str = "class_weights") -> dict[str, float]:
    """Return the weight of each class.

    Args:
        option: ``none``; ``balanced`` for N / (C * n), with n of the N examples of all C classes that occur; or
            ``LABEL:WEIGHT,LABEL:WEIGHT``, with 1 for the others.
        counts: number of training examples of each class.
        where: name of the option, for messages.

    Raises:
        UsageError: the option is something else, names an unknown label, or a weight is not a finite number above 0.
    """
    if not isinstance(option, str):
        raise UsageError(where, f"is {quote(option)}", _FORM)
    weights = dict.fromkeys(counts, 1.0)
    if option == NO_WEIGHTS:
        return weights
    if option == BALANCED:
        present = {label: count for label, count in counts.items() if count}
        mean = sum(present.values()) / max(1, len(present))
        return weights | {label: mean / count for label, count in present.items()}
    named = set()
    for part in option.split(","):
        label, colon, number = part.rpartition(":")
        if not colon:
            raise UsageError(where, f"has {quote(part)}", _FORM)
        if label not in weights:
            raise UsageError(where, f"has the unknown label {quote(label)}", did_you_mean(label, weights))
        if label in named:
            raise UsageError(where, f"has the label {quote(label)} twice", "keep one of them")
        named.add(label)
        weights[label] = _weight(number, label, where)
    return weights


def _weight(text: str, label: str, where: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not (math.isfinite(weight) and weight > 0):
        problem = f"has the weight {quote(text)} for {quote(label)}"
        raise UsageError(where, problem, "give a finite number above 0")
    return weight
