"""Fingerprint of a run: everything that its weights are a function of. Equal fingerprints give equal weights."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from nlptasks.config import Target, TrainSettings, recorded
from nlptasks.data.datasets import DataSet
from nlptasks.errors import TrainingError, listing, quote
from nlptasks.models.model import Model
from nlptasks.training.run_state import TrainingRun, TrainTask
from nlptasks.training.trainer import digest_of
from nlptasks.version import __version__

_MAY_DIFFER = ("settings.backbone", "settings.device", "settings.checkpoint_seconds")
"""Settings that may differ when a run is resumed: backbone and device are compared themselves, the last has no effect."""


def of_head(target: Target, data: DataSet, task: TrainTask) -> dict[str, Any]:
    """Return the part of the fingerprint that belongs to one head."""
    return {
        "task": target.task,
        "config": recorded(task.head.config),
        "head_lr": task.rate,
        "data": {
            "files": {Path(name).name: digest for name, digest in data.files.items()},
            "split": data.split,
            "columns": dict(target.columns),
        },
    }


def of_run(settings: TrainSettings, model: Model, accelerator: Accelerator) -> dict[str, Any]:
    """Return the rest of the fingerprint."""
    assets = "".join(hashlib.sha256(content).hexdigest() for content in model.backbone.assets.values())
    weights = digest_of(model.backbone.state_dict())
    device = accelerator.device
    return {
        "settings": asdict(settings),
        "backbone": hashlib.sha256((assets + weights).encode()).hexdigest(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "versions": {
            "nlptasks": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "accelerate", "tokenizers", "numpy")},
        },
    }


def as_json(value: Any) -> Any:
    """Return a value as JSON gives it back."""
    return json.loads(json.dumps(value))


def recorded_of(run: TrainingRun, name: str) -> dict[str, Any]:
    """Return the fingerprint of one head for its log."""
    shared = {key: value for key, value in run.fingerprint.items() if key not in ("heads", "order")}
    own = dict(run.fingerprint["heads"][name])
    settings = {**shared.pop("settings"), "head_lr": own.pop("head_lr")}
    return {"head": name, "together": list(run.fingerprint["heads"]), **own, "settings": settings, **shared}


def check_same(before: Mapping[str, Any], now: Mapping[str, Any], output: Path) -> None:
    """Refuse to resume a run with another fingerprint.

    Raises:
        TrainingError: it names what differs.
    """
    differences = [
        difference for difference in _differences(before, now) if difference.partition(" ")[0] not in _MAY_DIFFER
    ]
    if differences:
        raise TrainingError(
            str(output),
            f"was trained with other settings or data: {listing(differences)}",
            "resume it with the same ones, or train anew with `overwrite=True`",
        )


def _differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """Return ``settings.lr was 0.1, is 0.2`` for every difference."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            yield from _differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif before != now:
        yield f"{name} was {quote(before)}, is {quote(now)}"
