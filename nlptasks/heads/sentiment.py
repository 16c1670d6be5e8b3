"""Sentiment: a label on a scale from the most negative to the most positive, and where on it the text stands.

Rows are those of a classification with one label. The order of the labels is known for the common ways to write them; any other
scale is given by ``--set HEAD.scale=LABEL,LABEL,...``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nlptasks.backbones.backbone import BackboneInfo
from nlptasks.config import decided, setting
from nlptasks.errors import DataError, UsageError, listing
from nlptasks.heads.classification import ClassificationConfig, ClassificationExample, ClassificationHead
from nlptasks.types import Outputs, Window

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
"""Scales by their names, the shortest ones first; case, ``_`` and ``-`` between words do not matter."""

_MOST_STARS = (5, 10)


@dataclass(frozen=True)
class Sentiment:
    """The sentiment of a text.

    Attributes:
        label: the most likely label, None for a text without tokens.
        score: its probability, in 0..1.
        scores: the probability of every label, the most likely ones first.
        polarity: the mean of the labels' places on the scale by their probabilities, from -1 (most negative) to 1 (most
            positive); None for a text without tokens.
    """

    label: str | None
    score: float | None
    scores: Mapping[str, float] = field(default_factory=dict)
    polarity: float | None = None


@dataclass(frozen=True)
class SentimentConfig(ClassificationConfig):
    """Options of a head, and what its training data decided."""

    scale: str = setting(
        "auto", "the labels from the most negative to the most positive, LABEL,LABEL,...; auto knows many"
    )
    polarities: tuple[float, ...] = decided((), "the place of each label on the scale, in -1..1")


class SentimentHead(ClassificationHead):
    """Gives a text a label on a scale from negative to positive, and its polarity in -1..1."""

    contract = 1
    Config = SentimentConfig
    config: SentimentConfig
    sample = "samples/sentiment"
    results = (Sentiment,)

    @classmethod
    def configure(cls, rows: Sequence[Any], given: Mapping[str, Any]) -> SentimentConfig:
        return _with_polarities(super().configure(rows, given), rows[0].where)

    @classmethod
    def _ordered(cls, counts: Mapping[str, int], options: Any, kind: type, where: str) -> tuple[str, ...]:
        return tuple(_scale(options.scale, tuple(counts), where=where))

    @classmethod
    def from_hugging_face(cls, backbone: BackboneInfo, given: Mapping[str, Any]) -> SentimentConfig:
        return _with_polarities(super().from_hugging_face(backbone, given), "config.json")

    def to_hugging_face(self) -> tuple[dict[str, Any], list[str]]:
        said, lost = super().to_hugging_face()
        given = [] if self.config.scale == "auto" else ["the order of its labels: to import it again, give its scale"]
        return said, [*lost, *given]

    def decode(
        self, example: ClassificationExample, windows: Sequence[Window], outputs: Sequence[Outputs]
    ) -> Sentiment:
        found = super().decode(example, windows, outputs)
        places = dict(zip(self.config.labels, self.config.polarities, strict=True))
        if not found.scores:
            return Sentiment(None, None)
        polarity = sum(places[label] * score for label, score in found.scores.items())
        return Sentiment(found.label, found.score, found.scores, min(1.0, max(-1.0, polarity)))  # rounding may leave it

    def metrics(self, examples: Sequence[ClassificationExample], results: Sequence[Any]) -> dict[str, float]:
        """Also ``mae``: the mean absolute error of the label's place, as a share of the scale's length."""
        places = dict(zip(self.config.labels, self.config.polarities, strict=True))
        errors = [
            abs(places[label] - places[result.label]) / 2 if result.label is not None else 1.0
            for example, result in zip(examples, results, strict=True)
            for label in example.gold or ()
        ]
        return {**super().metrics(examples, results), "mae": sum(errors) / len(errors)}


def _with_polarities(config: SentimentConfig, where: str) -> SentimentConfig:
    if config.several:
        raise DataError(where, "has several labels for a text, expected one on a scale", "take a classification")
    places = _scale(config.scale, config.labels, where=where)
    return replace(config, polarities=tuple(places[label] for label in config.labels))


def _scale(given: str, labels: Sequence[str], *, where: str) -> dict[str, float]:
    """The place of each label on the scale, in its order.

    Raises:
        UsageError: the scale that was given has other labels.
        DataError: it was not given, and the labels do not tell it.
    """
    if given == "auto":
        for scale in _known(labels):
            return scale
        fix = "give their order: --set HEAD.scale=LABEL,LABEL,... from the most negative to the most positive"
        raise DataError(where, f"the order of the labels {listing(sorted(labels))} is not known", fix)
    named = given.split(",")
    if sorted(named) != sorted(labels):
        problem = f"has the labels {listing(named)}, those found are {listing(sorted(labels))}"
        raise UsageError("scale", problem, "name each of these once")
    return _spread(named)


def _known(labels: Sequence[str]) -> Iterator[dict[str, float]]:
    """The scales that these labels are known to be of."""
    spelled = {
        re.sub(r"[\s_-]+", " ", label.casefold()).strip() if label[:1] != "-" else label: label for label in labels
    }
    if len(spelled) < len(labels):
        return
    for scale in _NAMED:
        if set(spelled) <= set(scale):
            yield {spelled[name]: place for name, place in _spread(scale).items() if name in spelled}
    stars = {int(match[1]): label for name, label in spelled.items() if (match := _STARS.fullmatch(name))}
    for most in _MOST_STARS:
        if len(stars) == len(labels) and {1, most} <= set(stars) <= set(range(1, most + 1)):
            yield {stars[number]: 2 * (number - 1) / (most - 1) - 1 for number in sorted(stars)}


def _spread(scale: Sequence[str]) -> dict[str, float]:
    """Labels in order at equal distances from -1 to 1."""
    return {label: 2 * index / max(1, len(scale) - 1) - 1 for index, label in enumerate(scale)}
