"""Everything that trained weights are a function of: two runs of one identity end with the same weights."""

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
from nlptasks.training.run_state import Lesson, Subject
from nlptasks.training.trainer import digest_of
from nlptasks.version import __version__

_MAY_DIFFER = ("settings.backbone", "settings.device", "settings.checkpoint_seconds")
"""Settings that may differ when a run is resumed: what the first two name is compared itself, the last changes nothing."""


def of_head(target: Target, data: DataSet, subject: Subject) -> dict[str, Any]:
    """What the weights are a function of, as far as it is one head's."""
    return {
        "task": target.task,
        "config": recorded(subject.head.config),
        "head_lr": subject.rate,
        "data": {
            "files": {Path(name).name: digest for name, digest in data.files.items()},
            "split": data.split,
            "columns": dict(target.columns),
        },
    }


def of_run(settings: TrainSettings, model: Model, accelerator: Accelerator) -> dict[str, Any]:
    """What else the weights are a function of."""
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
    """A value as it comes back from JSON."""
    return json.loads(json.dumps(value))


def recorded_of(lesson: Lesson, name: str) -> dict[str, Any]:
    """What the weights of one head are a function of, as its log has it."""
    run = {key: value for key, value in lesson.identity.items() if key not in ("heads", "order")}
    own = dict(lesson.identity["heads"][name])
    settings = {**run.pop("settings"), "head_lr": own.pop("head_lr")}
    return {"head": name, "together": list(lesson.identity["heads"]), **own, "settings": settings, **run}


def check_same(before: Mapping[str, Any], now: Mapping[str, Any], output: Path) -> None:
    """Refuse to go on with a run that began otherwise.

    Raises:
        TrainingError: it names what differs.
    """
    differences = [
        difference for difference in _differences(before, now) if difference.partition(" ")[0] not in _MAY_DIFFER
    ]
    if differences:
        raise TrainingError(
            str(output),
            f"was trained otherwise: {listing(differences)}",
            "resume it with what it began with, or train anew with --overwrite",
        )


def _differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """``settings.lr was 0.1, is 0.2`` for every value that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            yield from _differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif before != now:
        yield f"{name} was {quote(before)}, is {quote(now)}"
