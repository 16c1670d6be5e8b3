"""What looks wrong with data before anything is learned from them: warnings, a line each, with counts and the first places."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlptasks.errors import listing, quote
from nlptasks.heads.base import Head
from nlptasks.types import Row, Source

_FEW_ROWS = 5
_SHOWN = 3


@dataclass(frozen=True)
class _Checked:
    """A row by what the checks compare.

    Attributes:
        place: name of the file, and line.
        key: what the backbone reads for it.
        gold: its gold answer.
        labels: the labels in it.
    """

    place: str
    key: tuple[Source, ...]
    gold: Hashable
    labels: frozenset[str]


def warnings_of(head: Head, rows: Mapping[str, Sequence[Row]], examples: Mapping[str, Sequence[Any]]) -> list[str]:
    """What to tell the user about a data set, in the time of one pass over it.

    Args:
        head: what reads it.
        rows: the rows of each part, ``train`` among them.
        examples: the example of each of these rows, with its gold answer.

    Returns:
        A line for each of these that is so: all rows of train have the same answer; labels are rare in train; rows of train
        contradict each other; rows of another part are also in train.
    """
    parts = {
        part: [_checked(head, row, example) for row, example in zip(own, examples[part], strict=True)]
        for part, own in rows.items()
    }
    train = parts.pop("train")
    places: dict[tuple[Source, ...], _Checked] = {}
    for row in train:
        places.setdefault(row.key, row)
    found = [_one_answer(train), _rare_labels(train), _contradictions(train, places)]
    found += [_leaks(part, own, places) for part, own in parts.items()]
    return [warning for warning in found if warning]


def _checked(head: Head, row: Row, example: Any) -> _Checked:
    key = tuple(head.sources(example))
    return _Checked(Path(row.where).name, key, head.gold(example), frozenset(head.gold_labels(example)))


def _one_answer(train: Sequence[_Checked]) -> str:
    if len(train) < 2 or len({row.gold for row in train}) > 1:
        return ""
    return f"all {len(train)} rows of train have the same answer: {_places(row.place for row in train)}"


def _rare_labels(train: Sequence[_Checked]) -> str:
    places: dict[str, list[str]] = {}
    for row in train:
        for label in row.labels:
            places.setdefault(label, []).append(row.place)
    rare = sorted((len(own), label) for label, own in places.items() if len(own) < _FEW_ROWS)
    shown = _places(f"{quote(label)} in {count} ({_places(places[label])})" for count, label in rare)
    few = f"in fewer than {_FEW_ROWS} rows of train"
    return f"{len(rare)} of {len(places)} labels are {few}: {shown}" if rare else ""


def _contradictions(train: Sequence[_Checked], places: Mapping[tuple[Source, ...], _Checked]) -> str:
    pairs = [(row.place, places[row.key].place) for row in train if row.gold != places[row.key].gold]
    return (
        f"{len(pairs)} rows of train have the text of another one, but not its answer: {_pairs(pairs)}" if pairs else ""
    )


def _leaks(part: str, rows: Sequence[_Checked], places: Mapping[tuple[Source, ...], _Checked]) -> str:
    pairs = [(row.place, places[row.key].place) for row in rows if row.key in places]
    return f"{len(pairs)} of {len(rows)} rows of {part} are also in train: {_pairs(pairs)}" if pairs else ""


def _pairs(pairs: Sequence[tuple[str, str]]) -> str:
    return _places(f"{one} = {two}" for one, two in pairs)


def _places(places: Iterable[str]) -> str:
    return listing(places, limit=_SHOWN)
