"""Rows of pairs as examples, and the range of their scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nlptasks import DataError, Row, each, is_blank, quote, text_field

UNIT_SCORES = ((0.0, 1.0), (-1.0, 1.0))
"""Ranges of scores that are cosines already."""

_NAMES = ("first", "second", "negative")


@dataclass(frozen=True)
class SimilarityExample:
    """A text; or a pair of texts, perhaps with a negative for the first text.

    Attributes:
        texts: the texts in this order.
        score: the gold score of the pair, None if there is none.
    """

    texts: tuple[str, ...]
    score: float | None = None

    @property
    def has_blank(self) -> bool:
        """True if a text has no visible character, whatever tokens a tokenizer makes of it."""
        return any(map(is_blank, self.texts))


def pair_of(row: Row) -> SimilarityExample:
    """Return the example of a row with two texts, with its score if it has one."""
    texts = [text_field(row, "first"), text_field(row, "second")]
    score = _score(row)
    if row.fields.get("negative") not in (None, ""):
        if score is not None:
            raise DataError(row.where, "has a negative beside a score", "leave out one of them")
        texts.append(text_field(row, "negative"))
        if texts[2] == texts[1]:
            raise DataError(row.where, f"has {quote(texts[1])} as second and as negative", "correct the row")
    return SimilarityExample(tuple(texts), score)


def gold_pair_of(row: Row) -> SimilarityExample:
    """Return the example of a row with two texts to learn from; both must have text.

    Raises:
        DataError: the row is wrong or has an empty text.
    """
    example = pair_of(row)
    for name, text in zip(_NAMES, example.texts, strict=False):
        if is_blank(text):
            raise DataError(row.where, f"has an empty text as {name!r}", "remove the row")
    return example


def _score(row: Row) -> float | None:
    value = row.fields.get("score")
    if value is None or value == "":
        return None
    try:
        score = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else None
    except ValueError:
        score = None
    if score is None:
        raise DataError(row.where, f"score is {quote(value)}, expected a number", "correct the row")
    if not math.isfinite(score):
        raise DataError(row.where, f"score is {quote(value)}, expected a finite number", "correct the row")
    return score


def range_of(scores: Sequence[float], option: str | tuple[float, float], rows: Sequence[Row]) -> tuple[float, float]:
    """Return the lowest and the highest possible score.

    Raises:
        DataError: a score is outside the range that the option sets, or all scores are equal.
    """
    if not isinstance(option, str):
        each(lambda pair: check_within(pair[0], *option, pair[1].where), zip(scores, rows, strict=True))
        return option
    lowest, highest = min(scores), max(scores)
    for low, high in UNIT_SCORES:
        if low <= lowest and highest <= high:
            return low, high
    if lowest == highest:
        where = rows[0].where.rpartition(":")[0]
        problem = f"all rows have the score {lowest:g}"
        raise DataError(where, problem, 'add other scores, or set their range, such as `options={"scores": (1, 5)}`')
    return lowest, highest


def check_within(score: float, lowest: float, highest: float, where: str) -> None:
    """Refuse a score outside a range.

    Raises:
        DataError: it is outside.
    """
    if not lowest <= score <= highest:
        problem = f"score is {score:g}, expected {lowest:g} to {highest:g}"
        raise DataError(where, problem, 'correct the row, or the range, such as `options={"scores": (1, 5)}`')
