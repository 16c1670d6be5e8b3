"""Settings that the user left open, chosen from the backbone, the data and the device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from nlptasks.config import TrainSettings
from nlptasks.errors import UsageError
from nlptasks.runtimes.pytorch import has_bf16


def default_lr(parameters: int) -> float:
    """The highest learning rate of a backbone of which so many weights are trained, embeddings left out."""
    # 3e-4 is measured for 10 million weights (MiniLM); the power leads to the usual 5e-5 for 85 million (BERT base) and
    # 2e-5 for 300 million (BERT large).
    return float(min(1e-3, 3e-4 * (1e7 / max(parameters, 1)) ** 0.8))


def chosen(
    settings: TrainSettings,
    *,
    parameters: int,
    tokens: Sequence[int],
    lr_scale: float = 1.0,
    processes: int = 1,
    heads: int = 1,
) -> TrainSettings:
    """The settings with everything that was left open chosen from the backbone and the data.

    Args:
        settings: as given.
        parameters: weights of the backbone that are trained, embeddings left out.
        tokens: tokens of each training example.
        lr_scale: the head's; of several the lowest.
        processes: how many share each step.
        heads: how many learn together.
    """
    lr = settings.lr or lr_scale * default_lr(parameters)
    # About 200 steps of each head an epoch learn well from few rows, with at least some 8 rows in each; beyond 2,048 tokens the
    # speed no longer grows.
    shared = processes * settings.accumulate
    least = max(256, 8 * sum(tokens) // (len(tokens) * shared))
    budget = settings.batch_tokens or min(2048, max(least, sum(tokens) // (200 * shared * heads)))
    steps = max(1, sum(tokens) // (budget * shared))
    return replace(
        settings,
        lr=lr,
        batch_tokens=budget,
        epochs=settings.epochs or min(20, max(3, math.ceil(600 / steps))),
    )


def chosen_precision(wanted: str, device: torch.device) -> str:
    """The precision of the passes: for ``auto`` bf16 where the hardware has it.

    Raises:
        UsageError: it is fp16 and there is no GPU.
    """
    if wanted == "fp16" and device.type == "cpu":
        raise UsageError("--precision fp16", "needs a GPU", "take bf16 or fp32, or auto")
    if wanted != "auto":
        return wanted
    without = {"cuda": "fp16"}.get(device.type, "fp32")
    return "bf16" if has_bf16(device) else without
