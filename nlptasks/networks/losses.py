"""Losses over classes, and the options that change them: weights of classes, smoothing of labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from nlptasks.errors import UsageError, did_you_mean, quote
from nlptasks.types import IGNORED

NO_WEIGHTS, BALANCED = "none", "balanced"
WEIGHTS_DOC = (
    "weights of the classes in the loss: none, balanced (rare ones count more), or LABEL:WEIGHT,... (others count 1)"
)
_FORM = "take none, balanced or LABEL:WEIGHT,LABEL:WEIGHT"
SMOOTHING_DOC = "share of the target that is spread over all classes, in 0..1"


def cross_entropy(
    logits: Tensor, labels: Tensor, *, weights: Sequence[float] = (), smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Cross entropy as a sum, and the count that it is a sum over; their quotient is the mean as torch takes it.

    Args:
        logits: scores of the classes [...,C].
        labels: the right class, or `IGNORED` [...].
        weights: of each class [C]; empty if all count alike.
        smoothing: share of the target that is spread over all classes, in 0..1.

    Returns:
        The sum, and the number of labels that are not ignored, or the sum of their weights: scalars.
    """
    flat = labels.flatten()  # [N]
    scale = logits.new_tensor(weights) if weights else None  # [C]
    total = nn.functional.cross_entropy(
        logits.flatten(0, -2), flat, scale, ignore_index=IGNORED, label_smoothing=smoothing, reduction="sum"
    )
    known = flat != IGNORED  # [N]
    if scale is None:
        return total, known.sum()
    return total, torch.where(known, scale[flat.clamp(min=0)], 0.0).sum()


def binary_cross_entropy(
    logits: Tensor, targets: Tensor, *, weights: Sequence[float] = (), smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Cross entropy of classes that are independent of each other, as a sum, and the count that it is a sum over.

    Args:
        logits: scores of the classes [N,C].
        targets: 1 for the right classes, else 0 [N,C].
        weights: of each class where it is right [C]; empty if all count alike.
        smoothing: share of the target that is moved to one half, in 0..1.

    Returns:
        The sum, and the number of logits: scalars.
    """
    soft = targets.to(logits.dtype) * (1 - smoothing) + smoothing / 2  # [N,C]
    scale = logits.new_tensor(weights) if weights else None  # [C]
    total = nn.functional.binary_cross_entropy_with_logits(logits, soft, pos_weight=scale, reduction="sum")
    return total, torch.tensor(logits.numel(), device=logits.device)


def example_means(logits: Tensor, example: Tensor) -> Tensor:
    """The mean over the windows of each example.

    Args:
        logits: of each window [B,C].
        example: number of the example of each window, from 0, in order [B].

    Returns:
        The means [E,C].
    """
    counts = torch.bincount(example)  # [E]
    sums = logits.new_zeros(len(counts), logits.shape[1]).index_add(0, example, logits)  # [E,C]
    return sums / counts.unsqueeze(1)


def of_first_windows(values: Tensor, example: Tensor) -> Tensor:
    """The values [B,...] of the first window of each example: [E,...]."""
    first = torch.ones_like(example, dtype=torch.bool)  # [B]
    first[1:] = example[1:] != example[:-1]
    return values[first]


def class_weights(option: str, counts: Mapping[str, int], *, where: str) -> dict[str, float]:
    """The weight of each class.

    Args:
        option: ``none``; ``balanced``, N / (C * n) for a class with n of the N examples of all C classes that occur; or
            ``LABEL:WEIGHT,LABEL:WEIGHT``, where the others have 1.
        counts: how often each class occurs in the training data.
        where: the option's name, for messages.

    Raises:
        UsageError: the option is something else, names an unknown label, or a weight is not a finite number above 0.
    """
    if not isinstance(option, str):  # what comes from Python is checked no earlier
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
