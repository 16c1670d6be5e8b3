"""Checks of training data: one warning per problem, with its count and the first places."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlptasks.errors import listing, quote
from nlptasks.heads.base import AnyHead
from nlptasks.types import ModelInput, Row

_FEW_ROWS = 5
"""Labels in fewer rows are rare."""
_SHOWN = 3
"""Number of places in a warning."""


@dataclass(frozen=True)
class _CheckedRow:
    """The properties of a row that the checks compare.

    Attributes:
        place: file name and line.
        inputs: what the backbone reads.
        gold: the gold answer.
        labels: the labels in the gold answer.
    """

    place: str
    inputs: tuple[ModelInput, ...]
    gold: Hashable
    labels: frozenset[str]


def warnings_of(head: AnyHead, rows: Mapping[str, Sequence[Row]], examples: Mapping[str, Sequence[Any]]) -> list[str]:
    """Return warnings about a data set.

    The checks: all rows of train have the same answer; labels are rare in train; rows of train have equal texts and different
    answers; rows of another part are also in train.

    Args:
        head: the head that is trained.
        rows: the rows of each part, ``train`` included.
        examples: the examples of these rows, with gold answers.
    """
    parts = {
        part: [_checked(head, row, example) for row, example in zip(own, examples[part], strict=True)]
        for part, own in rows.items()
    }
    train = parts.pop("train")
    first: dict[tuple[ModelInput, ...], _CheckedRow] = {}
    for row in train:
        first.setdefault(row.inputs, row)
    found = [_one_answer(train), _rare_labels(train), _contradictions(train, first)]
    found += [_leaks(part, own, first) for part, own in parts.items()]
    return [warning for warning in found if warning]


def _checked(head: AnyHead, row: Row, example: Any) -> _CheckedRow:
    labels = frozenset(head.presenter.gold_labels(example))
    return _CheckedRow(Path(row.where).name, tuple(head.inputs(example)), head.gold(example), labels)


def _one_answer(train: Sequence[_CheckedRow]) -> str:
    if len(train) < 2 or len({row.gold for row in train}) > 1:
        return ""
    return f"all {len(train)} rows of train have the same answer: {_places(row.place for row in train)}"


def _rare_labels(train: Sequence[_CheckedRow]) -> str:
    places: dict[str, list[str]] = {}
    for row in train:
        for label in row.labels:
            places.setdefault(label, []).append(row.place)
    rare = sorted((len(own), label) for label, own in places.items() if len(own) < _FEW_ROWS)
    shown = _places(f"{quote(label)} in {count} ({_places(places[label])})" for count, label in rare)
    few = f"in fewer than {_FEW_ROWS} rows of train"
    return f"{len(rare)} of {len(places)} labels are {few}: {shown}" if rare else ""


def _contradictions(train: Sequence[_CheckedRow], first: Mapping[tuple[ModelInput, ...], _CheckedRow]) -> str:
    pairs = [(row.place, first[row.inputs].place) for row in train if row.gold != first[row.inputs].gold]
    problem = "have the same text as another row, but another answer"
    return f"{len(pairs)} rows of train {problem}: {_pairs(pairs)}" if pairs else ""


def _leaks(part: str, rows: Sequence[_CheckedRow], first: Mapping[tuple[ModelInput, ...], _CheckedRow]) -> str:
    pairs = [(row.place, first[row.inputs].place) for row in rows if row.inputs in first]
    return f"{len(pairs)} of {len(rows)} rows of {part} are also in train: {_pairs(pairs)}" if pairs else ""


def _pairs(pairs: Sequence[tuple[str, str]]) -> str:
    return _places(f"{one} = {two}" for one, two in pairs)


def _places(places: Iterable[str]) -> str:
    return listing(places, limit=_SHOWN)
