"""Class labels of Hugging Face checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nlptasks.errors import ModelError, listing, quote


def checkpoint_labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the labels of a checkpoint's classes, in order.

    Args:
        config: the checkpoint's config.

    Raises:
        ModelError: they are not numbered from 0 without gaps, or a label occurs twice.
    """
    labels = {int(index): str(label) for index, label in config["id2label"].items()}
    fix = "repair id2label in its config.json"
    if sorted(labels) != list(range(len(labels))):
        problem = f"numbers its labels {listing(sorted(labels))}, expected 0 to {len(labels) - 1} without gaps"
        raise ModelError("config.json", problem, fix)
    names = tuple(labels[index] for index in range(len(labels)))
    if len(set(names)) < len(names):
        duplicate = next(name for name in names if names.count(name) > 1)
        raise ModelError("config.json", f"has the label {quote(duplicate)} twice in id2label", fix)
    return names
