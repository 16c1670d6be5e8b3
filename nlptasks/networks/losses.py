"""Losses over classes, as a sum and the count that it is a sum over."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nlptasks.types import IGNORED


def cross_entropy(
    logits: Tensor, labels: Tensor, *, weights: Sequence[float] = (), smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return the cross entropy as a sum, and its count; their quotient is the mean that PyTorch computes.

    Args:
        logits: scores of the classes [...,C].
        labels: index of the right class, or `IGNORED` [...].
        weights: weight of each class [C]; empty for equal weights.
        smoothing: label smoothing, in 0..1.

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
    """Return the cross entropy of independent classes as a sum, and its count.

    Args:
        logits: scores of the classes [N,C].
        targets: 1 for right classes, else 0 [N,C].
        weights: weight of each class where it is right [C]; empty for equal weights.
        smoothing: label smoothing towards one half, in 0..1.

    Returns:
        The sum, and the number of logits: scalars.
    """
    soft = targets.to(logits.dtype) * (1 - smoothing) + smoothing / 2  # [N,C]
    scale = logits.new_tensor(weights) if weights else None  # [C]
    total = nn.functional.binary_cross_entropy_with_logits(logits, soft, pos_weight=scale, reduction="sum")
    return total, torch.tensor(logits.numel(), device=logits.device)


def example_means(logits: Tensor, example: Tensor) -> Tensor:
    """Return the mean over the windows of each example.

    Args:
        logits: of each window [B,C].
        example: index of the example of each window, in order [B].

    Returns:
        The means [E,C].
    """
    counts = torch.bincount(example)  # [E]
    sums = logits.new_zeros(len(counts), logits.shape[1]).index_add(0, example, logits)  # [E,C]
    return sums / counts.unsqueeze(1)


def of_first_windows(values: Tensor, example: Tensor) -> Tensor:
    """Return the values [B,...] of the first window of each example [E,...]."""
    first = torch.ones_like(example, dtype=torch.bool)  # [B]
    first[1:] = example[1:] != example[:-1]
    return values[first]
