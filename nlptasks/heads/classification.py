"""Classification: one label for a text or a pair of texts, or any number of labels.

Rows are ``text`` (and ``text_pair``) and ``label``, or ``labels`` with a list: then a text may have several labels or none. A
text that is too long is read in windows, whose logits are averaged, in training as in prediction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from nlptasks.backbones.backbone import BackboneInfo
from nlptasks.config import SHARE_BELOW_1, check_values, decided, parse_options, setting
from nlptasks.data.fields import LabelField, label_field, same_kind, text_field
from nlptasks.errors import DataError, ModelError, UsageError, did_you_mean, each, quote
from nlptasks.heads.base import Head
from nlptasks.heads.losses import (
    NO_WEIGHTS,
    SMOOTHING_DOC,
    WEIGHTS_DOC,
    binary_cross_entropy,
    class_weights,
    cross_entropy,
    example_means,
    of_first_windows,
)
from nlptasks.heads.transformers_layers import HuggingFaceLayers, checkpoint_labels
from nlptasks.metrics.calibration import TEMPERATURE_DOC, checked, fit_temperature, log_sigmoid, log_softmax
from nlptasks.metrics.labelling import best_thresholds, label_scores, label_set_scores
from nlptasks.text.words import is_blank
from nlptasks.types import IGNORED, Floats, Ints, Outputs, Reading, Row, Source, Window


@dataclass(frozen=True)
class Label:
    """The label of a text.

    Attributes:
        label: the most likely label, None for a text without tokens.
        score: its probability, in 0..1.
        scores: the probability of every label, the most likely ones first.
    """

    label: str | None
    score: float | None
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Labels:
    """The labels of a text that may have several or none.

    Attributes:
        labels: those whose probability reaches the label's threshold, the most likely ones first.
        scores: the probability of every label, in 0..1, the most likely ones first.
    """

    labels: tuple[str, ...]
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ClassificationConfig:
    """Options of a head, and what its training data decided."""

    class_weights: str = setting(NO_WEIGHTS, WEIGHTS_DOC + "; where a text may have several labels: of the right ones")
    label_smoothing: float = setting(0.0, SMOOTHING_DOC, within=SHARE_BELOW_1)
    separator: str = setting(",", "what stands between labels in a cell of the column labels")
    labels: tuple[str, ...] = decided((), "the classes, in order")
    several: bool = decided(False, "whether a text may have several labels, or none")
    pairs: bool | None = decided(False, "whether it reads pairs of texts; null if it may read both")
    weights: tuple[float, ...] = decided((), "the weight of each class in the loss, empty if all count alike")
    temperature: float = decided(1.0, TEMPERATURE_DOC)
    thresholds: tuple[float, ...] = decided((), "the least probability of each label that is given; empty for one half")

    def __post_init__(self) -> None:
        check_values(self)
        if not self.separator:
            raise UsageError("separator", "is empty", "give what stands between two labels")


@dataclass(frozen=True)
class ClassificationExample:
    """A text or a pair, and its gold labels (None if it has no gold answer)."""

    source: Source
    gold: tuple[str, ...] | None


class ClassificationHead(Head):
    """Gives a text, or a pair of texts, one label, or any number of them."""

    contract = 1
    Config: ClassVar[type] = ClassificationConfig
    config: ClassificationConfig
    main_metric = "accuracy"
    fields: ClassVar = ("text", "text_pair", "label", "labels")
    gold_fields: ClassVar = ("label", "labels")
    sample = "samples/classification"
    results: ClassVar[tuple[type, ...]] = (Label, Labels)
    assigns = ("doc.cats",)
    outputs: Mapping[str, str] = {"logits": "BC"}
    lr_scale = 0.5
    hf_auto = "AutoModelForSequenceClassification"

    def __init__(self, config: ClassificationConfig, *, backbone: BackboneInfo) -> None:
        super().__init__(config, backbone=backbone)
        self.layers = HuggingFaceLayers(self.hf_auto, backbone, classes=len(config.labels), shapes=self.outputs)
        self._kind = _SEVERAL if config.several else _ONE
        self.main_metric = self._kind.main_metric

    @classmethod
    def configure(cls, rows: Sequence[Row], given: Mapping[str, Any]) -> Any:
        options = cls._options(given)
        found = each(lambda row: _gold_field(row, options.separator), rows)
        several = same_kind(rows, found)
        pairs = _are_pairs(rows)
        counts = Counter(label for one in found for label in one.labels)
        if not counts:
            raise DataError(rows[0].where, "and the rows after it have no label at all", "label some")
        kind = next(one.kind for one in found if one.labels)
        labels = cls._ordered(counts, options, kind, rows[0].where)
        weights: tuple[float, ...] = ()
        if options.class_weights != NO_WEIGHTS:
            by_label = class_weights(options.class_weights, counts, where=f"{_option_prefix(cls)}.class_weights")
            weights = tuple(by_label[label] for label in labels)
        return replace(options, labels=labels, several=several, pairs=pairs, weights=weights)

    @classmethod
    def _options(cls, given: Mapping[str, Any]) -> Any:
        return cls.Config(**parse_options(cls.Config, given, where=_option_prefix(cls)))

    @classmethod
    def _ordered(cls, counts: Mapping[str, int], options: Any, kind: type, where: str) -> tuple[str, ...]:
        """The classes in order: numbers by size, names by letters."""
        return tuple(sorted(counts, key=int if kind is int else None))

    @property
    def labels(self) -> tuple[str, ...]:
        labels: tuple[str, ...] = self.config.labels
        return labels

    def read(self, row: Row) -> ClassificationExample:
        first = text_field(row)
        is_pair = "text_pair" in row.fields
        if self.config.pairs is not None and is_pair != self.config.pairs:
            has, fix = ("no", "add it") if self.config.pairs else ("a", "leave it out")
            raise DataError(row.where, f"has {has} 'text_pair', unlike the training data", fix)
        second = text_field(row, "text_pair") if is_pair else None
        gold = None
        if any(row.fields.get(name) is not None for name in ("label", "labels")):
            found = _gold_field(row, self.config.separator)
            if found.several != self.config.several and len(found.labels) != 1:
                expected = "a list of labels" if self.config.several else "one label"
                raise DataError(
                    row.where, f"has {quote(found.value)}, expected {expected} as in training", "correct it"
                )
            for label in found.labels:
                if label not in self.config.labels:
                    problem = f"label {quote(label)} is not in the training data"
                    raise DataError(row.where, problem, did_you_mean(label, self.config.labels))
            gold = found.labels
        return ClassificationExample(Source(first, second), gold)

    def read_gold_row(self, row: Row) -> ClassificationExample:
        example: ClassificationExample = super().read_gold_row(row)
        if _is_empty(example):
            raise DataError(row.where, "has an empty text", "remove the row")
        return example

    def gold(self, example: ClassificationExample) -> tuple[str, ...] | None:
        return example.gold

    def gold_labels(self, example: ClassificationExample) -> Sequence[str]:
        return example.gold or ()

    def sources(self, example: ClassificationExample) -> list[Source]:
        return [example.source]

    def features(self, example: ClassificationExample, window: Window) -> dict[str, Ints]:
        assert example.gold is not None
        right = np.array([self.config.labels.index(label) for label in example.gold], dtype=np.int64)
        return {"labels": self._kind.targets(right, len(window), len(self.config.labels))}

    def forward(self, states: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = self.layers(states, batch["mask"])  # [B,C]
        return outputs

    def loss(self, states: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        logits = example_means(self.forward(states, batch)["logits"].float(), batch["example"])  # [E,C]
        targets = of_first_windows(batch["labels"], batch["example"])  # [E,S] or [E,C]
        return self._kind.loss(logits, targets, self.config)

    def adopt(self, pretrained: Callable[[], Mapping[str, Tensor]]) -> None:
        self.layers.adopt(pretrained)

    def calibrate(self, readings: Iterable[Reading]) -> Any:
        logits, right = self._logits_and_gold(readings)  # [N,C], [N,C]

        def surprise(temperature: float) -> float:
            return -float(self._kind.log_likelihood(logits, right, temperature).sum(dtype=np.float64))

        return replace(self.config, temperature=fit_temperature(surprise))

    def fit_thresholds(self, readings: Iterable[Reading]) -> Any:
        if not self.config.several:
            return self.config
        logits, right = self._logits_and_gold(readings)  # [N,C], [N,C]
        thresholds = best_thresholds(self._kind.probabilities(logits, self.config.temperature), right)
        return replace(self.config, thresholds=thresholds)

    def _logits_and_gold(self, readings: Iterable[Reading]) -> tuple[Floats, Ints]:
        """The logits of every example with tokens, and 1 for its gold labels, else 0 [N,C]."""
        rows = [
            (_mean_logits(one.outputs), [label in one.example.gold for label in self.config.labels])
            for one in readings
            if one.windows
        ]
        size = (-1, len(self.config.labels))
        logits, gold = [logits for logits, _ in rows], [gold for _, gold in rows]
        return np.array(logits, np.float32).reshape(size), np.array(gold, np.int64).reshape(size)

    def scored(self, example: ClassificationExample, result: Any) -> list[tuple[float, bool]]:
        return self._kind.scored(result, example.gold or ())

    def decode(self, example: ClassificationExample, windows: Sequence[Window], outputs: Sequence[Outputs]) -> Any:
        if not windows or _is_empty(example):
            return self._kind.nothing
        found = self._kind.probabilities(_mean_logits(outputs), self.config.temperature)  # [C]
        order = np.argsort(-found, kind="stable")
        scores = {self.config.labels[index]: float(found[index]) for index in order}
        return self._kind.result(scores, dict(zip(self.config.labels, self.config.thresholds, strict=False)))

    def metrics(self, examples: Sequence[ClassificationExample], results: Sequence[Any]) -> dict[str, float]:
        return self._kind.metrics([example.gold or () for example in examples], results, self.config.labels)

    def example_row(self) -> dict[str, str]:
        return {"text": "A text.", **({"text_pair": "Another text."} if self.config.pairs else {})}

    def show(self, example: ClassificationExample, result: Any) -> list[tuple[str, str]]:
        pair = f" / {example.source.second}" if example.source.second is not None else ""
        given = [(f" {result.scores[label]:.2f}", label) for label in self._kind.given(result)]
        return [(example.source.first + pair + " ", ""), *(given or [(" none", "")])]

    def annotate(self, doc: Any, result: Any, name: str) -> None:
        """``doc.cats`` has the probability of every label."""
        doc.cats.update(result.scores)

    @classmethod
    def from_hugging_face(cls, backbone: BackboneInfo, given: Mapping[str, Any]) -> Any:
        options, config = cls._options(given), backbone.config
        if config.problem_type == "regression" or config.num_labels < 2:
            raise ModelError(
                "config.json", f"describes a regression ({config.num_labels} outputs)", "take a classifier"
            )
        labels = checkpoint_labels(config)
        several = config.problem_type == "multi_label_classification"
        return replace(options, labels=labels, several=several, pairs=None)

    def to_hugging_face(self) -> tuple[dict[str, Any], list[str]]:
        lost = ["the thresholds of its labels: others take one half"] if self.config.thresholds else []
        return {"id2label": dict(enumerate(self.config.labels)), "problem_type": self._kind.problem_type}, lost


class _One:
    """A text has one label."""

    main_metric, problem_type = "accuracy", "single_label_classification"
    nothing = Label(None, None)

    def targets(self, right: Ints, tokens: int, classes: int) -> Ints:
        return np.append(right, np.full(tokens - 1, IGNORED, dtype=np.int64))  # [S] the label is the first token's

    def loss(self, logits: Tensor, targets: Tensor, config: ClassificationConfig) -> tuple[Tensor, Tensor]:
        return cross_entropy(logits, targets[:, 0], weights=config.weights, smoothing=config.label_smoothing)

    def probabilities(self, logits: Floats, temperature: float) -> Floats:
        return np.exp(log_softmax(logits, temperature))

    def log_likelihood(self, logits: Floats, right: Ints, temperature: float) -> Floats:
        likelihoods: Floats = log_softmax(logits, temperature)[right == 1]
        return likelihoods

    def result(self, scores: dict[str, float], thresholds: Mapping[str, float]) -> Label:
        best, score = next(iter(scores.items()))
        return Label(best, score, scores)

    def given(self, result: Any) -> tuple[str, ...]:
        return () if result.label is None else (result.label,)

    def scored(self, result: Any, gold: tuple[str, ...]) -> list[tuple[float, bool]]:
        return [] if result.label is None else [(result.score, result.label in gold)]

    def metrics(
        self, gold: Sequence[tuple[str, ...]], results: Sequence[Any], labels: Sequence[str]
    ) -> dict[str, float]:
        return label_scores([label for [label] in gold], [result.label for result in results], labels)


class _Several:
    """A text has any number of labels."""

    main_metric, problem_type = "micro_f1", "multi_label_classification"
    nothing = Labels(())

    def targets(self, right: Ints, tokens: int, classes: int) -> Ints:
        targets = np.zeros(classes, dtype=np.int64)  # [C]
        targets[right] = 1
        return targets

    def loss(self, logits: Tensor, targets: Tensor, config: ClassificationConfig) -> tuple[Tensor, Tensor]:
        return binary_cross_entropy(logits, targets, weights=config.weights, smoothing=config.label_smoothing)

    def probabilities(self, logits: Floats, temperature: float) -> Floats:
        return np.exp(log_sigmoid(logits, temperature))

    def log_likelihood(self, logits: Floats, right: Ints, temperature: float) -> Floats:
        return log_sigmoid(np.where(right == 1, logits, -logits), temperature)

    def result(self, scores: dict[str, float], thresholds: Mapping[str, float]) -> Labels:
        return Labels(tuple(label for label, score in scores.items() if score >= thresholds.get(label, 0.5)), scores)

    def given(self, result: Any) -> tuple[str, ...]:
        labels: tuple[str, ...] = result.labels
        return labels

    def scored(self, result: Any, gold: tuple[str, ...]) -> list[tuple[float, bool]]:
        return [(score, label in gold) for label, score in result.scores.items()]

    def metrics(
        self, gold: Sequence[tuple[str, ...]], results: Sequence[Any], labels: Sequence[str]
    ) -> dict[str, float]:
        scores = [[result.scores.get(label, 0.0) for label in labels] for result in results]
        return label_set_scores(gold, [result.labels for result in results], scores, labels)


_ONE, _SEVERAL = _One(), _Several()


def _is_empty(example: ClassificationExample) -> bool:
    """Whether there is nothing to be seen, whatever tokens a tokenizer makes of it."""
    return is_blank(example.source.first + (example.source.second or ""))


def _option_prefix(cls: type[Head]) -> str:
    return cls.sample.rpartition("/")[2]


def _mean_logits(outputs: Sequence[Outputs]) -> Floats:
    """The mean over an example's windows [C]."""
    mean: Floats = np.mean([output["logits"] for output in outputs], axis=0)
    return checked(mean)


def _gold_field(row: Row, separator: str) -> LabelField:
    name = "labels" if row.fields.get("labels") is not None else "label"
    return label_field(row, name, separator=separator if name == "labels" else None)


def _are_pairs(rows: Sequence[Row]) -> bool:
    """Whether these rows are pairs, all of them.

    Raises:
        DataError: some are and some are not.
    """
    pairs = ["text_pair" in row.fields for row in rows]
    if any(pairs) and not all(pairs):
        problem = f"has no 'text_pair', but {rows[pairs.index(True)].where} has one"
        raise DataError(rows[pairs.index(False)].where, problem, "give pairs only, or texts only")
    return all(pairs)
