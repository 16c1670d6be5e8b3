"""nlptasks: one pretrained backbone, many task heads, one pass.

The names below are the public surface, together with `nlptasks.pipeline` and `nlptasks.testing`; anything else is private and may
change. They are imported when they are first used, so that ``import nlptasks`` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from nlptasks.backbone import DECODER as DECODER
    from nlptasks.backbone import ENCODER as ENCODER
    from nlptasks.backbone import ENCODER_DECODER as ENCODER_DECODER
    from nlptasks.backbone import Backbone as Backbone
    from nlptasks.backbone import BackboneInfo as BackboneInfo
    from nlptasks.causal import CausalConfig as CausalConfig
    from nlptasks.causal import CausalHead as CausalHead
    from nlptasks.config import Range as Range
    from nlptasks.config import Target as Target
    from nlptasks.config import TrainSettings as TrainSettings
    from nlptasks.config import check_values as check_values
    from nlptasks.config import decided as decided
    from nlptasks.config import parse_options as parse_options
    from nlptasks.config import setting as setting
    from nlptasks.errors import BackendError as BackendError
    from nlptasks.errors import DataError as DataError
    from nlptasks.errors import ModelError as ModelError
    from nlptasks.errors import NlptasksError as NlptasksError
    from nlptasks.errors import PluginError as PluginError
    from nlptasks.errors import TrainingError as TrainingError
    from nlptasks.errors import UsageError as UsageError
    from nlptasks.errors import did_you_mean as did_you_mean
    from nlptasks.errors import each as each
    from nlptasks.errors import listing as listing
    from nlptasks.errors import quote as quote
    from nlptasks.evaluation import evaluate as evaluate
    from nlptasks.exporting import export as export
    from nlptasks.fields import json_field as json_field
    from nlptasks.fields import label_field as label_field
    from nlptasks.fields import list_field as list_field
    from nlptasks.fields import spans_field as spans_field
    from nlptasks.fields import text_field as text_field
    from nlptasks.fields import texts_field as texts_field
    from nlptasks.files import TABLES as TABLES
    from nlptasks.files import pairs_of as pairs_of
    from nlptasks.files import read_conll as read_conll
    from nlptasks.files import read_jsonl as read_jsonl
    from nlptasks.files import read_text as read_text
    from nlptasks.generative import GenerativeConfig as GenerativeConfig
    from nlptasks.generative import GenerativeHead as GenerativeHead
    from nlptasks.generative import Text as Text
    from nlptasks.generative import Writing as Writing
    from nlptasks.heads.base import IGNORED as IGNORED
    from nlptasks.heads.base import Graph as Graph
    from nlptasks.heads.base import Head as Head
    from nlptasks.layers import HuggingFaceLayers as HuggingFaceLayers
    from nlptasks.layers import checkpoint_labels as checkpoint_labels
    from nlptasks.lines import read_lines as read_lines
    from nlptasks.losses import NO_WEIGHTS as NO_WEIGHTS
    from nlptasks.losses import SMOOTHING_DOC as SMOOTHING_DOC
    from nlptasks.losses import WEIGHTS_DOC as WEIGHTS_DOC
    from nlptasks.losses import binary_cross_entropy as binary_cross_entropy
    from nlptasks.losses import class_weights as class_weights
    from nlptasks.losses import cross_entropy as cross_entropy
    from nlptasks.losses import example_means as example_means
    from nlptasks.losses import of_first_windows as of_first_windows
    from nlptasks.model import Model as Model
    from nlptasks.probabilities import TEMPERATURE_DOC as TEMPERATURE_DOC
    from nlptasks.probabilities import checked as checked
    from nlptasks.probabilities import fit_temperature as fit_temperature
    from nlptasks.probabilities import log_sigmoid as log_sigmoid
    from nlptasks.probabilities import log_softmax as log_softmax
    from nlptasks.scores import label_scores as label_scores
    from nlptasks.scores import label_set_scores as label_set_scores
    from nlptasks.scores import span_scores as span_scores
    from nlptasks.stepping import hypotheses_in as hypotheses_in
    from nlptasks.tags import SCHEMES as SCHEMES
    from nlptasks.tags import LabelledSpan as LabelledSpan
    from nlptasks.tags import TagDecoder as TagDecoder
    from nlptasks.tags import TagError as TagError
    from nlptasks.tags import detect_scheme as detect_scheme
    from nlptasks.tags import in_words as in_words
    from nlptasks.tags import labels_of as labels_of
    from nlptasks.tags import spans_of as spans_of
    from nlptasks.tags import tag_set as tag_set
    from nlptasks.tags import tags_of as tags_of
    from nlptasks.text import Span as Span
    from nlptasks.text import close_unspaced as close_unspaced
    from nlptasks.text import is_blank as is_blank
    from nlptasks.text import join_words as join_words
    from nlptasks.text import readable as readable
    from nlptasks.text import split_at as split_at
    from nlptasks.text import words as words
    from nlptasks.text import words_in as words_in
    from nlptasks.textscores import rouge_scores as rouge_scores
    from nlptasks.training import train as train
    from nlptasks.types import FIRST as FIRST
    from nlptasks.types import SECOND as SECOND
    from nlptasks.types import SPECIAL as SPECIAL
    from nlptasks.types import Floats as Floats
    from nlptasks.types import Ints as Ints
    from nlptasks.types import OnError as OnError
    from nlptasks.types import Outputs as Outputs
    from nlptasks.types import Pass as Pass
    from nlptasks.types import Reader as Reader
    from nlptasks.types import Reading as Reading
    from nlptasks.types import Row as Row
    from nlptasks.types import Source as Source
    from nlptasks.types import Window as Window
    from nlptasks.types import refuse as refuse

_MODULES = {
    "nlptasks.backbone": ("Backbone", "BackboneInfo", "DECODER", "ENCODER", "ENCODER_DECODER"),
    "nlptasks.causal": ("CausalConfig", "CausalHead"),
    "nlptasks.config": ("Range", "Target", "TrainSettings", "check_values", "decided", "parse_options", "setting"),
    "nlptasks.errors": (
        "BackendError",
        "DataError",
        "ModelError",
        "NlptasksError",
        "PluginError",
        "TrainingError",
        "UsageError",
        "did_you_mean",
        "each",
        "listing",
        "quote",
    ),
    "nlptasks.evaluation": ("evaluate",),
    "nlptasks.exporting": ("export",),
    "nlptasks.fields": ("json_field", "label_field", "list_field", "spans_field", "text_field", "texts_field"),
    "nlptasks.files": ("TABLES", "pairs_of", "read_conll", "read_jsonl", "read_text"),
    "nlptasks.generative": ("GenerativeConfig", "GenerativeHead", "Text", "Writing"),
    "nlptasks.heads.base": ("Graph", "Head", "IGNORED"),
    "nlptasks.layers": ("HuggingFaceLayers", "checkpoint_labels"),
    "nlptasks.lines": ("read_lines",),
    "nlptasks.losses": (
        "NO_WEIGHTS",
        "SMOOTHING_DOC",
        "WEIGHTS_DOC",
        "binary_cross_entropy",
        "class_weights",
        "cross_entropy",
        "example_means",
        "of_first_windows",
    ),
    "nlptasks.model": ("Model",),
    "nlptasks.probabilities": ("TEMPERATURE_DOC", "checked", "fit_temperature", "log_sigmoid", "log_softmax"),
    "nlptasks.scores": ("label_scores", "label_set_scores", "span_scores"),
    "nlptasks.stepping": ("hypotheses_in",),
    "nlptasks.tags": (
        "LabelledSpan",
        "SCHEMES",
        "TagDecoder",
        "TagError",
        "detect_scheme",
        "in_words",
        "labels_of",
        "spans_of",
        "tag_set",
        "tags_of",
    ),
    "nlptasks.text": ("Span", "close_unspaced", "is_blank", "join_words", "readable", "split_at", "words", "words_in"),
    "nlptasks.textscores": ("rouge_scores",),
    "nlptasks.training": ("train",),
    "nlptasks.types": (
        "FIRST",
        "Floats",
        "Ints",
        "OnError",
        "Outputs",
        "Pass",
        "Reader",
        "Reading",
        "Row",
        "SECOND",
        "SPECIAL",
        "Source",
        "Window",
        "refuse",
    ),
}
"""Where each public name stands."""

_PUBLIC = {name: module for module, names in _MODULES.items() for name in names}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'nlptasks' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
