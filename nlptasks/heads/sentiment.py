"""Sentiment: a label on a scale from the most negative to the most positive, and the position of the text on that scale.

Rows are those of a classification with one label. The order of common labels is known; any other scale is set by
the option ``scale``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from nlptasks.backbones.info import BackboneInfo
from nlptasks.config import Range, derived, option
from nlptasks.errors import DataError, UsageError, listing
from nlptasks.heads.classification import (
    ClassificationConfig,
    ClassificationExample,
    ClassificationFormat,
    ClassificationHead,
    Label,
)
from nlptasks.metrics.base import Counts, Metrics
from nlptasks.metrics.labelling import label_pairs
from nlptasks.types import Outputs, Row, Window

_STARS = re.compile(r"(\d+)(?: ?stars?)?")
_NAMED = (
    ("negative", "positive"),
    ("neg", "pos"),
    ("0", "1"),
    ("-1", "1"),
    ("false", "true"),
    ("negative", "neutral", "positive"),
    ("neg", "neu", "pos"),
    ("-1", "0", "1"),
    ("very negative", "negative", "neutral", "positive", "very positive"),
    ("strongly negative", "negative", "neutral", "positive", "strongly positive"),
)
"""Known scales, the shortest first. Case, and ``_`` and ``-`` between words, do not matter."""

_MOST_STARS = (5, 10)


@dataclass(frozen=True)
class Sentiment(Label):
    """The sentiment of a text.

    Attributes:
        polarity: the mean position of the labels on the scale, weighted by their probabilities, from -1 (most negative) to 1
            (most positive); None for a text without tokens.
    """

    polarity: float | None = None


@dataclass(frozen=True)
class SentimentConfig(ClassificationConfig):
    """Options of a head, and what its training data decided."""

    scale: str | tuple[str, ...] = option(
        "auto", "labels from the most negative to the most positive; auto knows common scales", choices=("auto",)
    )
    polarities: tuple[float, ...] = derived(
        (), "the position of each label on the scale, in -1..1", within=Range(least=-1, most=1)
    )


class SentimentFormat(ClassificationFormat[SentimentConfig]):
    """Checkpoints that classify texts, with labels on a scale."""

    def to_config(self, backbone: BackboneInfo, options: Mapping[str, Any]) -> SentimentConfig:
        return _with_polarities(super().to_config(backbone, options), "config.json")

    def to_checkpoint(self, config: SentimentConfig, backbone: BackboneInfo) -> tuple[dict[str, Any], list[str]]:
        entries, lost = super().to_checkpoint(config, backbone)
        if config.scale != "auto":
            lost = [*lost, "the order of its labels: set its scale to import it again"]
        return entries, lost


class SentimentHead(ClassificationHead[SentimentConfig]):
    """Gives a text a label on a scale from negative to positive, and its polarity in -1..1."""

    Config = SentimentConfig
    schema = replace(ClassificationHead.schema, results=(Sentiment,), sample="samples/sentiment")
    hugging_face: ClassVar = SentimentFormat(SentimentConfig)

    def __init__(self, config: SentimentConfig, backbone: BackboneInfo) -> None:
        super().__init__(config, backbone)
        self._positions = dict(zip(config.labels, config.polarities, strict=True))

    @classmethod
    def configure(cls, rows: Sequence[Row], options: SentimentConfig, backbone: BackboneInfo) -> SentimentConfig:
        config = _with_polarities(super().configure(rows, options, backbone), rows[0].where)
        order = sorted(range(len(config.labels)), key=config.polarities.__getitem__)
        return replace(
            config,
            labels=tuple(config.labels[index] for index in order),
            polarities=tuple(config.polarities[index] for index in order),
            weights=tuple(config.weights[index] for index in order if config.weights),
        )

    def decode(
        self, example: ClassificationExample, windows: Sequence[Window], outputs: Sequence[Outputs]
    ) -> Sentiment:
        found = super().decode(example, windows, outputs)
        if not found.scores:
            return Sentiment(None, None)
        [label] = found.labels
        polarity = sum(self._positions[label] * score for label, score in found.scores.items())
        limited = min(1.0, max(-1.0, polarity))  # rounding errors may exceed the scale
        return Sentiment(label, found.scores[label], found.scores, limited)

    def metrics(self, counts: Counts) -> Metrics:
        """Also return ``mae``, the mean absolute error of the label's position, as a share of the scale's length."""
        pairs = label_pairs(counts)
        error = sum(self._error(*pair) * count for pair, count in pairs.items())
        metrics = super().metrics(counts)
        return replace(metrics, values={**metrics.values, "mae": error / sum(pairs.values())})

    def _error(self, gold: str | None, predicted: str | None) -> float:
        if gold is None or predicted is None:
            return 1.0
        return abs(self._positions[gold] - self._positions[predicted]) / 2


def _with_polarities(config: SentimentConfig, where: str) -> SentimentConfig:
    if config.several:
        raise DataError(where, "has several labels for a text, expected one on a scale", "use the task classification")
    positions = _positions_on(config.scale, config.labels, where)
    return replace(config, polarities=tuple(positions[label] for label in config.labels))


def _positions_on(scale: str | tuple[str, ...], labels: Sequence[str], where: str) -> dict[str, float]:
    """Return the position of each label on a scale.

    Raises:
        UsageError: the scale has other labels.
        DataError: the scale is ``auto``, and the labels are of no known scale.
    """
    if scale == "auto":
        found = next(_known(labels), None)
        if found is not None:
            return found
        fix = 'set their order, from the most negative to the most positive: `options={"scale": ("LABEL", "LABEL")}`'
        raise DataError(where, f"the order of the labels {listing(sorted(labels))} is not known", fix)
    if sorted(scale) != sorted(labels):
        problem = f"has the labels {listing(scale)}, those found are {listing(sorted(labels))}"
        raise UsageError("scale", problem, "name each of these once")
    return _spread(scale)


def _known(labels: Sequence[str]) -> Iterator[dict[str, float]]:
    """Yield the positions of the labels on each known scale that has them."""
    spelled = {
        re.sub(r"[\s_-]+", " ", label.casefold()).strip() if label[:1] != "-" else label: label for label in labels
    }
    if len(spelled) < len(labels):
        return
    for scale in _NAMED:
        if set(spelled) <= set(scale):
            yield {spelled[name]: position for name, position in _spread(scale).items() if name in spelled}
    stars = {int(match[1]): label for name, label in spelled.items() if (match := _STARS.fullmatch(name))}
    for most in _MOST_STARS:
        if len(stars) == len(labels) and {1, most} <= set(stars) <= set(range(1, most + 1)):
            yield {stars[number]: 2 * (number - 1) / (most - 1) - 1 for number in sorted(stars)}


def _spread(scale: Sequence[str]) -> dict[str, float]:
    """Return the positions of labels in order, at equal distances from -1 to 1."""
    return {label: 2 * index / max(1, len(scale) - 1) - 1 for index, label in enumerate(scale)}
