"""Classification: one label for a text or a pair of texts, or any number of labels.

Rows are ``text`` (and ``text_pair``) with ``label``, or with ``labels``, a list: then a text may have several labels or none. A
text that is too long is read in windows. Their logits are averaged, in training and in prediction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from nlptasks.backbones.info import BackboneInfo
from nlptasks.config import ABOVE_0, SHARE_BELOW_1, Range, check_values, derived, option
from nlptasks.data.fields import LabelField, have_field, label_field, same_kind, text_field
from nlptasks.errors import DataError, ModelError, UsageError, did_you_mean, each, quote
from nlptasks.heads.base import Calibration, Head, HuggingFaceFormat, Presenter, Schema, SpacyWriter
from nlptasks.heads.checkpoint_labels import checkpoint_labels
from nlptasks.heads.class_weights import NO_WEIGHTS, SMOOTHING_DOC, class_weights, weights_option
from nlptasks.heads.label_kinds import SEVERAL_LABELS, label_kind
from nlptasks.metrics.base import Counts, Metrics
from nlptasks.metrics.calibration import TEMPERATURE_DOC, Likelihood, checked
from nlptasks.metrics.labelling import best_thresholds
from nlptasks.text.words import is_blank
from nlptasks.types import Floats, HeadOutputs, Ints, ModelInput, Outputs, Result, Row, Window


@dataclass(frozen=True)
class Label(Result):
    """The label of a text.

    Attributes:
        label: the most likely label; None for a text without tokens.
        score: its probability, in 0..1.
        scores: the probability of every label, the most likely first.
    """

    label: str | None
    score: float | None
    scores: Mapping[str, float] = field(default_factory=dict)

    @property
    def labels(self) -> tuple[str, ...]:
        """The label as a tuple; empty for a text without tokens."""
        return () if self.label is None else (self.label,)


@dataclass(frozen=True)
class Labels(Result):
    """The labels of a text that may have several or none.

    Attributes:
        labels: the labels whose probability reaches their threshold, the most likely first.
        scores: the probability of every label, in 0..1, the most likely first.
    """

    labels: tuple[str, ...]
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ClassificationConfig:
    """Options of a head, and what its training data decided."""

    class_weights: str | Mapping[str, float] = weights_option("; with several labels for a text, of right labels")
    label_smoothing: float = option(0.0, SMOOTHING_DOC, within=SHARE_BELOW_1)
    separator: str = option(",", "text between two labels in a cell of the column labels")
    labels: tuple[str, ...] = derived((), "the classes, in order")
    several: bool = derived(False, "true if a text may have several labels or none")
    pairs: bool | None = derived(False, "true if it reads pairs of texts; null if it reads both texts and pairs")
    weights: tuple[float, ...] = derived((), "weights of the classes in the loss; empty for equal ones", within=ABOVE_0)
    temperature: float = derived(1.0, TEMPERATURE_DOC, within=ABOVE_0)
    thresholds: tuple[float, ...] = derived(
        (), "probability that each label must reach; empty for one half", within=Range(least=0, most=1)
    )

    def __post_init__(self) -> None:
        check_values(self)
        if not self.separator:
            raise UsageError("separator", "is empty", "set the text between two labels")


ConfigT = TypeVar("ConfigT", bound=ClassificationConfig)


@dataclass(frozen=True)
class ClassificationExample:
    """A text or a pair of texts.

    Attributes:
        texts: the text, or both texts.
        gold: the gold labels; None if there is no gold answer.
    """

    texts: tuple[str, ...]
    gold: tuple[str, ...] | None


class ClassificationFormat(HuggingFaceFormat[ConfigT], Generic[ConfigT]):
    """Checkpoints that classify texts.

    Args:
        config_class: the class of the head's config.
    """

    def __init__(self, config_class: type[ConfigT]) -> None:
        self._config_class = config_class

    def to_config(self, backbone: BackboneInfo, options: Mapping[str, Any]) -> ConfigT:
        problem_type, classes = backbone.config.get("problem_type"), len(backbone.config["id2label"])
        if problem_type == "regression" or classes < 2:
            raise ModelError("config.json", f"describes a regression ({classes} outputs)", "use a classifier")
        labels = checkpoint_labels(backbone.config)
        several = problem_type == SEVERAL_LABELS.problem_type
        return replace(self._config_class(**options), labels=labels, several=several, pairs=None)

    def to_checkpoint(self, config: ConfigT, backbone: BackboneInfo) -> tuple[dict[str, Any], list[str]]:
        lost = ["the thresholds of its labels: other libraries use one half"] if config.thresholds else []
        problem_type = label_kind(several=config.several).problem_type
        return {"id2label": dict(enumerate(config.labels)), "problem_type": problem_type}, lost


class LabelWriter(SpacyWriter[Label | Labels]):
    """``doc.cats`` gets the probability of every label."""

    assigns = ("doc.cats",)

    def write(self, doc: Any, result: Label | Labels, name: str) -> None:
        doc.cats.update(result.scores)


class ClassificationPresenter(Presenter[ClassificationExample, Label | Labels]):
    """Shows the text with its labels."""

    def __init__(self, config: ClassificationConfig) -> None:
        self.labels = config.labels
        self._pairs = config.pairs

    def gold_labels(self, example: ClassificationExample) -> tuple[str, ...]:
        return example.gold or ()

    def example_row(self) -> dict[str, str]:
        return {"text": "A text.", **({"text_pair": "Another text."} if self._pairs else {})}

    def render(self, example: ClassificationExample, result: Label | Labels) -> list[tuple[str, str]]:
        found = [(f" {result.scores[label]:.2f}", label) for label in result.labels]
        return [(" / ".join(example.texts) + " ", ""), *(found or [(" none", "")])]


class ClassificationCalibration(Calibration[ClassificationExample, Label | Labels]):
    """Calibrates the probabilities of labels."""

    def __init__(self, config: ClassificationConfig) -> None:
        self._config = config
        self._kind = label_kind(several=config.several)

    def likelihood(self, outputs: Iterable[HeadOutputs[ClassificationExample]]) -> Likelihood:
        return self._kind.likelihood(*_logits_and_gold(outputs, self._config.labels))

    def thresholds(self, outputs: Iterable[HeadOutputs[ClassificationExample]]) -> dict[str, Any]:
        if not self._kind.has_thresholds:
            return {}
        logits, gold = _logits_and_gold(outputs, self._config.labels)  # [N,C], [N,C]
        return {"thresholds": best_thresholds(self._kind.probabilities(logits, self._config.temperature), gold)}

    def confidences(self, example: ClassificationExample, result: Label | Labels) -> list[tuple[float, bool]]:
        return self._kind.confidences(example.gold or (), result.labels, result.scores)


class ClassificationHead(Head[ConfigT, ClassificationExample, Label | Labels], Generic[ConfigT]):
    """Gives a text, or a pair of texts, one label, or any number of labels."""

    Config: ClassVar[type] = ClassificationConfig
    network = "nlptasks.networks.sequence_classifier:SequenceClassifier"
    schema = Schema(
        contract=2,
        fields=("text", "text_pair", "label", "labels"),
        gold=("label", "labels"),
        results=(Label, Labels),
        sample="samples/classification",
    )
    hugging_face: ClassVar[HuggingFaceFormat[Any] | None] = ClassificationFormat(ClassificationConfig)
    spacy: ClassVar = LabelWriter()

    def __init__(self, config: ConfigT, backbone: BackboneInfo) -> None:
        super().__init__(config, backbone)
        self._kind = label_kind(several=config.several)
        self._class_of = {label: index for index, label in enumerate(config.labels)}

    @classmethod
    def configure(cls, rows: Sequence[Row], options: ConfigT, backbone: BackboneInfo) -> ConfigT:
        found = each(lambda row: _gold_field(row, options.separator), rows)
        several = same_kind(rows, found)
        pairs = have_field(rows, "text_pair")
        counts = Counter(label for one in found for label in one.labels)
        if not counts:
            where = rows[0].where.rpartition(":")[0]
            raise DataError(where, "no row has a label", "label some, or check `columns`")
        kind = next(one.kind for one in found if one.labels)
        labels = tuple(sorted(counts, key=int if kind is int else None))
        weights: tuple[float, ...] = ()
        if options.class_weights != NO_WEIGHTS:
            weight_of = class_weights(options.class_weights, counts)
            weights = tuple(weight_of[label] for label in labels)
        return replace(options, labels=labels, several=several, pairs=pairs, weights=weights)

    def network_options(self) -> Mapping[str, Any]:
        return {
            "classes": len(self.config.labels),
            "several": self.config.several,
            "weights": self.config.weights,
            "smoothing": self.config.label_smoothing,
        }

    def read(self, row: Row) -> ClassificationExample:
        first = text_field(row)
        is_pair = "text_pair" in row.fields
        if self.config.pairs is not None and is_pair != self.config.pairs:
            has, fix = ("no", "add it") if self.config.pairs else ("a", "leave it out")
            raise DataError(row.where, f"has {has} 'text_pair', unlike the training data", fix)
        texts = (first, text_field(row, "text_pair")) if is_pair else (first,)
        example = ClassificationExample(texts, self._gold_of(row))
        if example.gold is not None and _is_empty(example):
            raise DataError(row.where, "has an empty text", "remove the row")
        return example

    def _gold_of(self, row: Row) -> tuple[str, ...] | None:
        if all(row.fields.get(name) is None for name in self.schema.gold):
            return None
        found = _gold_field(row, self.config.separator)
        if found.several != self.config.several and len(found.labels) != 1:
            expected = "a list of labels" if self.config.several else "one label"
            raise DataError(row.where, f"has {quote(found.value)}, expected {expected} as in training", "correct it")
        for label in found.labels:
            if label not in self._class_of:
                problem = f"label {quote(label)} is not in the training data"
                raise DataError(row.where, problem, did_you_mean(label, self.config.labels))
        return found.labels

    def gold(self, example: ClassificationExample) -> tuple[str, ...] | None:
        return example.gold

    def inputs(self, example: ClassificationExample) -> list[ModelInput]:
        return [ModelInput(example.texts)]

    def targets(self, example: ClassificationExample, window: Window) -> dict[str, Ints]:
        right = np.array([self._class_of[label] for label in example.gold or ()], dtype=np.int64)
        return {"labels": self._kind.target(right, len(self.config.labels))}

    def decode(
        self, example: ClassificationExample, windows: Sequence[Window], outputs: Sequence[Outputs]
    ) -> Label | Labels:
        if not windows or _is_empty(example):
            return self._result((), {})
        found = self._kind.probabilities(_mean_logits(outputs), self.config.temperature)  # [C]
        order = np.argsort(-found, kind="stable")
        scores = {self.config.labels[index]: float(found[index]) for index in order}
        thresholds = dict(zip(self.config.labels, self.config.thresholds, strict=False))
        return self._result(self._kind.predicted(scores, thresholds), scores)

    def _result(self, labels: tuple[str, ...], scores: Mapping[str, float]) -> Label | Labels:
        if self.config.several:
            return Labels(labels, scores)
        return Label(labels[0], scores[labels[0]], scores) if labels else Label(None, None)

    def count(self, example: ClassificationExample, result: Label | Labels) -> Counts:
        return self._kind.count(example.gold or (), result.labels, result.scores)

    def metrics(self, counts: Counts) -> Metrics:
        return self._kind.metrics(counts, self.config.labels)

    @property
    def calibration(self) -> ClassificationCalibration:
        return ClassificationCalibration(self.config)

    @property
    def presenter(self) -> ClassificationPresenter:
        return ClassificationPresenter(self.config)


def _is_empty(example: ClassificationExample) -> bool:
    """Return True if nothing of the texts is visible. A tokenizer may make tokens of it all the same."""
    return is_blank("".join(example.texts))


def _mean_logits(outputs: Sequence[Outputs]) -> Floats:
    """Return the mean over an example's windows [C]."""
    mean: Floats = np.mean([output["logits"] for output in outputs], axis=0)
    return checked(mean)


def _logits_and_gold(
    outputs: Iterable[HeadOutputs[ClassificationExample]], labels: Sequence[str]
) -> tuple[Floats, Ints]:
    """Return the logits of each example with tokens, and 1 for its gold labels, else 0, both [N,C]."""
    logits, gold = [], []
    for one in outputs:
        if one.windows:
            logits.append(_mean_logits(one.outputs))
            gold.append([label in (one.example.gold or ()) for label in labels])
    size = (-1, len(labels))
    return np.array(logits, np.float32).reshape(size), np.array(gold, np.int64).reshape(size)


def _gold_field(row: Row, separator: str) -> LabelField:
    name = "labels" if row.fields.get("labels") is not None else "label"
    return label_field(row, name, separator=separator if name == "labels" else None)
