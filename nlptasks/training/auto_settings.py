"""Defaults of settings that depend on the backbone, the data and the device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from nlptasks.config import AUTO, TrainSettings
from nlptasks.errors import UsageError
from nlptasks.runtimes.pytorch import has_bf16

_GPU_ONLY = ("fp16",)
_WITHOUT_BF16 = {"cpu": "fp32", "cuda": "fp16"}
"""The fastest precision of a device whose hardware has no bf16."""


def default_lr(parameters: int) -> float:
    """Return the default learning rate for a number of trained weights, without embeddings."""
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
    """Return the settings with every None replaced.

    Args:
        settings: the user's settings.
        parameters: trained weights of the backbone, without embeddings.
        tokens: tokens of each training example.
        lr_scale: the network's; the lowest of several.
        processes: number of processes.
        heads: number of heads that are trained together.
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
    """Return the precision to train in: for ``auto`` bf16 if the hardware supports it.

    Raises:
        UsageError: it is fp16 and there is no GPU.
    """
    if device.type == "cpu" and wanted in _GPU_ONLY:
        raise UsageError("precision", f"is {wanted}, which needs a GPU", "use bf16, fp32 or auto", argument="precision")
    return _fastest(device) if wanted == AUTO else wanted


def _fastest(device: torch.device) -> str:
    return "bf16" if has_bf16(device) else _WITHOUT_BF16[device.type]
