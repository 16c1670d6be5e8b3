"""Measuring a head on labelled data, through the engine that predicts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlptasks.config import Target
from nlptasks.data.datasets import load_part
from nlptasks.data.readers import check_columns
from nlptasks.heads.base import AnyHead, read_gold, sample_folder
from nlptasks.inference.engine import CHUNK_ITEMS, Engine
from nlptasks.metrics.base import Metrics, merge
from nlptasks.types import Result, Row


@dataclass(frozen=True)
class Evaluation(Result):
    """The metrics of a head on labelled data.

    Attributes:
        head: its name.
        split: the part of the data.
        main_metric: name of the metric that training maximises.
        metrics: all metrics by name.
        signature: how they were computed, where the numbers alone do not say it, such as the sacreBLEU signature.
        scale: value of the main metric for perfect predictions.
    """

    head: str
    split: str
    main_metric: str
    metrics: Mapping[str, float]
    signature: str = ""
    scale: float = 1.0


@dataclass(frozen=True)
class GoldData:
    """Labelled examples of one head.

    Attributes:
        head: its name.
        split: the part of the data.
        examples: examples with gold answers.
    """

    head: str
    split: str
    examples: list[Any]

    def evaluate(self, engine: Engine) -> Evaluation:
        """Return the metrics of an engine on these examples."""
        items = ({self.head: example} for example in self.examples)
        results = (found[self.head] for found in engine.stream(items, first_chunk=CHUNK_ITEMS))
        head = engine.heads[self.head]
        return evaluation_of(self.head, self.split, head, zip(self.examples, results, strict=True))


def evaluation_of(name: str, split: str, head: AnyHead, pairs: Iterable[tuple[Any, Any]]) -> Evaluation:
    """Return the metrics of a head.

    Args:
        name: its name.
        split: the part of the data.
        head: the head.
        pairs: examples with gold answers, and their results.
    """
    metrics = measured(head, pairs)
    return Evaluation(name, split, metrics.main, metrics.values, signature=metrics.signature, scale=metrics.scale)


def measured(head: AnyHead, pairs: Iterable[tuple[Any, Any]]) -> Metrics:
    """Return the metrics of examples with gold answers and their results."""
    return head.metrics(merge(head.count(example, result) for example, result in pairs))


def rows_of(target: Target, head: AnyHead, split: str | None) -> tuple[str, list[Row]]:
    """Return a part of a target's data, or of the head's sample if it names none, and its rows.

    Raises:
        UsageError: a column is renamed to a field that the head does not read.
        DataError: the data cannot be used, or have no such part.
    """
    place = Path(target.data) if target.data else sample_folder(type(head))
    check_columns(target.columns, head.schema.fields)
    return load_part(place, split, head.schema.formats, target.columns)


def load_gold(target: Target, name: str, head: AnyHead, *, split: str | None = None) -> GoldData:
    """Return the labelled examples of a target, or of the head's sample if it names no data.

    Args:
        target: names the data and their columns.
        name: the head's name.
        head: what reads them.
        split: ``train``, ``dev`` or ``test``; None for test, else dev, else all of a single file.

    Raises:
        UsageError: a column is renamed to a field that the head does not read.
        DataError: the data cannot be used, or have no such part.
    """
    part, rows = rows_of(target, head, split)
    return GoldData(name, part, read_gold(head, rows))
