"""Rows of pairs as examples, and the range of their scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nlptasks import DataError, Row, UsageError, each, quote, text_field

UNIT_SCORES = ((0.0, 1.0), (-1.0, 1.0))
"""Ranges of scores that are those of cosines already."""


@dataclass(frozen=True)
class SimilarityExample:
    """A text; or two, and perhaps one that is unlike the first.

    Attributes:
        texts: in this order.
        score: how alike the two are, as the data say it; None if they do not.
        measured: whether it is a row of gold, whose second text is to be found among others.
    """

    texts: tuple[str, ...]
    score: float | None = None
    measured: bool = False


def pair_of(row: Row) -> SimilarityExample:
    """A row of two texts as an example, with its score if it has one."""
    texts = [text_field(row, "first"), text_field(row, "second")]
    score = _score(row)
    if row.fields.get("negative") not in (None, ""):
        if score is not None:
            raise DataError(row.where, "has a negative beside a score", "leave out one of them")
        texts.append(text_field(row, "negative"))
        if texts[2] == texts[1]:
            raise DataError(row.where, f"has {quote(texts[1])} as second and as negative", "correct the row")
    return SimilarityExample(tuple(texts), score)


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


def given_range(scores: str) -> tuple[float, float] | None:
    """The range that an option names; None if it is to be found.

    Raises:
        UsageError: it is no range.
    """
    if scores == "auto":
        return None
    try:
        lowest, highest = (float(part) for part in scores.split(","))
    except ValueError:
        lowest = highest = math.nan
    if not (lowest < highest and math.isfinite(highest - lowest)):
        fix = "give the lowest and the highest score, LOW,HIGH, such as 1,5, or auto"
        raise UsageError("similarity.scores", f"is {quote(scores)}", fix)
    return lowest, highest


def range_of(scores: Sequence[float], option: str, rows: Sequence[Row]) -> tuple[float, float]:
    """The lowest and the highest score that there can be.

    Raises:
        DataError: a score is outside of the range that was given, or all are the same.
    """
    given = given_range(option)
    if given:
        each(lambda pair: check_within(pair[0], *given, pair[1].where), zip(scores, rows, strict=True))
        return given
    lowest, highest = min(scores), max(scores)
    for low, high in UNIT_SCORES:
        if low <= lowest and highest <= high:
            return low, high
    if lowest == highest:
        problem = f"and all rows after it have the score {lowest:g}"
        raise DataError(rows[0].where, problem, "give other scores, too, or their range: --set HEAD.scores=LOW,HIGH")
    return lowest, highest


def check_within(score: float, lowest: float, highest: float, where: str) -> None:
    if not lowest <= score <= highest:
        problem = f"score is {score:g}, expected {lowest:g} to {highest:g}"
        raise DataError(where, problem, "correct the row, or the option: --set HEAD.scores=LOW,HIGH")
