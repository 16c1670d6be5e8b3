"""nlptasks: one pretrained backbone, many task heads, one pass.

The names below are the public surface, together with `nlptasks.pipeline` and `nlptasks.testing`; anything else is private and may
change. They are imported when they are first used, so that ``import nlptasks`` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nlptasks.version import __version__ as __version__

if TYPE_CHECKING:
    from nlptasks.backbones.backbone import DECODER as DECODER
    from nlptasks.backbones.backbone import ENCODER as ENCODER
    from nlptasks.backbones.backbone import ENCODER_DECODER as ENCODER_DECODER
    from nlptasks.backbones.backbone import Backbone as Backbone
    from nlptasks.backbones.backbone import BackboneInfo as BackboneInfo
    from nlptasks.backbones.graph import Graph as Graph
    from nlptasks.config import Range as Range
    from nlptasks.config import Target as Target
    from nlptasks.config import TrainSettings as TrainSettings
    from nlptasks.config import check_values as check_values
    from nlptasks.config import decided as decided
    from nlptasks.config import parse_options as parse_options
    from nlptasks.config import setting as setting
    from nlptasks.data.encoding import read_lines as read_lines
    from nlptasks.data.fields import json_field as json_field
    from nlptasks.data.fields import label_field as label_field
    from nlptasks.data.fields import list_field as list_field
    from nlptasks.data.fields import spans_field as spans_field
    from nlptasks.data.fields import text_field as text_field
    from nlptasks.data.fields import texts_field as texts_field
    from nlptasks.data.readers import TABLES as TABLES
    from nlptasks.data.readers import pairs_of as pairs_of
    from nlptasks.data.readers import read_conll as read_conll
    from nlptasks.data.readers import read_jsonl as read_jsonl
    from nlptasks.data.readers import read_text as read_text
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
    from nlptasks.exporting.exporter import export as export
    from nlptasks.generation.step_graph import hypotheses_in as hypotheses_in
    from nlptasks.heads.base import Head as Head
    from nlptasks.heads.causal import CausalConfig as CausalConfig
    from nlptasks.heads.causal import CausalHead as CausalHead
    from nlptasks.heads.losses import NO_WEIGHTS as NO_WEIGHTS
    from nlptasks.heads.losses import SMOOTHING_DOC as SMOOTHING_DOC
    from nlptasks.heads.losses import WEIGHTS_DOC as WEIGHTS_DOC
    from nlptasks.heads.losses import binary_cross_entropy as binary_cross_entropy
    from nlptasks.heads.losses import class_weights as class_weights
    from nlptasks.heads.losses import cross_entropy as cross_entropy
    from nlptasks.heads.losses import example_means as example_means
    from nlptasks.heads.losses import of_first_windows as of_first_windows
    from nlptasks.heads.seq2seq import GenerativeConfig as GenerativeConfig
    from nlptasks.heads.seq2seq import GenerativeHead as GenerativeHead
    from nlptasks.heads.seq2seq import Text as Text
    from nlptasks.heads.seq2seq import Writing as Writing
    from nlptasks.heads.transformers_layers import HuggingFaceLayers as HuggingFaceLayers
    from nlptasks.heads.transformers_layers import checkpoint_labels as checkpoint_labels
    from nlptasks.metrics.calibration import TEMPERATURE_DOC as TEMPERATURE_DOC
    from nlptasks.metrics.calibration import checked as checked
    from nlptasks.metrics.calibration import fit_temperature as fit_temperature
    from nlptasks.metrics.calibration import log_sigmoid as log_sigmoid
    from nlptasks.metrics.calibration import log_softmax as log_softmax
    from nlptasks.metrics.generation import rouge_scores as rouge_scores
    from nlptasks.metrics.labelling import label_scores as label_scores
    from nlptasks.metrics.labelling import label_set_scores as label_set_scores
    from nlptasks.metrics.labelling import span_scores as span_scores
    from nlptasks.models.model import Model as Model
    from nlptasks.runtimes.base import Pass as Pass
    from nlptasks.text.tags import SCHEMES as SCHEMES
    from nlptasks.text.tags import LabelledSpan as LabelledSpan
    from nlptasks.text.tags import TagDecoder as TagDecoder
    from nlptasks.text.tags import TagError as TagError
    from nlptasks.text.tags import detect_scheme as detect_scheme
    from nlptasks.text.tags import in_words as in_words
    from nlptasks.text.tags import labels_of as labels_of
    from nlptasks.text.tags import spans_of as spans_of
    from nlptasks.text.tags import tag_set as tag_set
    from nlptasks.text.tags import tags_of as tags_of
    from nlptasks.text.words import Span as Span
    from nlptasks.text.words import close_unspaced as close_unspaced
    from nlptasks.text.words import is_blank as is_blank
    from nlptasks.text.words import join_words as join_words
    from nlptasks.text.words import readable as readable
    from nlptasks.text.words import split_at as split_at
    from nlptasks.text.words import words as words
    from nlptasks.text.words import words_in as words_in
    from nlptasks.training.run import train as train
    from nlptasks.types import FIRST as FIRST
    from nlptasks.types import IGNORED as IGNORED
    from nlptasks.types import SECOND as SECOND
    from nlptasks.types import SPECIAL as SPECIAL
    from nlptasks.types import Floats as Floats
    from nlptasks.types import Ints as Ints
    from nlptasks.types import OnError as OnError
    from nlptasks.types import Outputs as Outputs
    from nlptasks.types import Reader as Reader
    from nlptasks.types import Reading as Reading
    from nlptasks.types import Row as Row
    from nlptasks.types import Source as Source
    from nlptasks.types import Window as Window
    from nlptasks.types import refuse as refuse

_MODULES = {
    "nlptasks.backbones.backbone": ("Backbone", "BackboneInfo", "DECODER", "ENCODER", "ENCODER_DECODER"),
    "nlptasks.heads.causal": ("CausalConfig", "CausalHead"),
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
    "nlptasks.exporting.exporter": ("export",),
    "nlptasks.data.fields": ("json_field", "label_field", "list_field", "spans_field", "text_field", "texts_field"),
    "nlptasks.data.readers": ("TABLES", "pairs_of", "read_conll", "read_jsonl", "read_text"),
    "nlptasks.heads.seq2seq": ("GenerativeConfig", "GenerativeHead", "Text", "Writing"),
    "nlptasks.heads.base": ("Head",),
    "nlptasks.backbones.graph": ("Graph",),
    "nlptasks.runtimes.base": ("Pass",),
    "nlptasks.heads.transformers_layers": ("HuggingFaceLayers", "checkpoint_labels"),
    "nlptasks.data.encoding": ("read_lines",),
    "nlptasks.heads.losses": (
        "NO_WEIGHTS",
        "SMOOTHING_DOC",
        "WEIGHTS_DOC",
        "binary_cross_entropy",
        "class_weights",
        "cross_entropy",
        "example_means",
        "of_first_windows",
    ),
    "nlptasks.models.model": ("Model",),
    "nlptasks.metrics.calibration": ("TEMPERATURE_DOC", "checked", "fit_temperature", "log_sigmoid", "log_softmax"),
    "nlptasks.metrics.labelling": ("label_scores", "label_set_scores", "span_scores"),
    "nlptasks.generation.step_graph": ("hypotheses_in",),
    "nlptasks.text.tags": (
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
    "nlptasks.text.words": (
        "Span",
        "close_unspaced",
        "is_blank",
        "join_words",
        "readable",
        "split_at",
        "words",
        "words_in",
    ),
    "nlptasks.metrics.generation": ("rouge_scores",),
    "nlptasks.training.run": ("train",),
    "nlptasks.types": (
        "FIRST",
        "Floats",
        "Ints",
        "IGNORED",
        "OnError",
        "Outputs",
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
