"""nlptasks: one pretrained backbone, many task heads, one pass.

The names below are the public surface; they are imported when they are first used, so that ``import nlptasks`` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from nlptasks.backbone import Backbone as Backbone
    from nlptasks.config import Target as Target
    from nlptasks.config import TrainSettings as TrainSettings
    from nlptasks.errors import NlptasksError as NlptasksError
    from nlptasks.evaluation import evaluate as evaluate
    from nlptasks.exporting import export as export
    from nlptasks.heads.base import Head as Head
    from nlptasks.model import Model as Model
    from nlptasks.training import train as train

_PUBLIC = {
    "Backbone": "nlptasks.backbone",
    "Head": "nlptasks.heads.base",
    "Model": "nlptasks.model",
    "NlptasksError": "nlptasks.errors",
    "Target": "nlptasks.config",
    "TrainSettings": "nlptasks.config",
    "evaluate": "nlptasks.evaluation",
    "export": "nlptasks.exporting",
    "train": "nlptasks.training",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'nlptasks' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
