"""How well a head answers labelled data, by the engine that predicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlptasks.config import Target
from nlptasks.data.datasets import load_part
from nlptasks.data.readers import check_columns
from nlptasks.heads.base import Head
from nlptasks.inference.engine import CHUNK_ITEMS, Engine
from nlptasks.types import Row


@dataclass(frozen=True)
class Evaluation:
    """How well a head answers.

    Attributes:
        head: its name.
        split: the part of the data.
        main_metric: the key of the metric that counts most.
        metrics: all metrics.
        measured_by: how they were computed, where the numbers alone do not say it.
    """

    head: str
    split: str
    main_metric: str
    metrics: Mapping[str, float]
    measured_by: str = ""


@dataclass(frozen=True)
class Gold:
    """Labelled examples of one head.

    Attributes:
        head: its name.
        split: the part of the data.
        examples: with their gold answers.
    """

    head: str
    split: str
    examples: list[Any]

    def measure(self, engine: Engine) -> Evaluation:
        """How well an engine answers them."""
        head = engine.heads[self.head]
        items = ({self.head: example} for example in self.examples)
        results = [found[self.head] for found in engine.stream(items, first_chunk=CHUNK_ITEMS)]
        metrics = head.metrics(self.examples, results)
        return Evaluation(self.head, self.split, head.main_metric, metrics, head.measured_by())


def rows_of(target: Target, head: Head, split: str | None) -> tuple[str, list[Row]]:
    """The part of a target's data, or of the head's sample if it names none, and its rows.

    Raises:
        UsageError: a column is renamed to what the head does not read.
        DataError: the data cannot be used, or have no such part.
    """
    place = Path(target.data) if target.data else head.sample_folder()
    check_columns(target.columns, head.fields)
    return load_part(place, split, head.formats, target.columns)


def read_gold(target: Target, name: str, head: Head, *, split: str | None = None) -> Gold:
    """The labelled examples of a target, of the head's sample if it names no data.

    Args:
        target: what names the data and their columns.
        name: the head's.
        head: what reads them.
        split: ``train``, ``dev`` or ``test``; None for test, else dev, else all of a single file.

    Raises:
        UsageError: a column is renamed to what the head does not read.
        DataError: the data cannot be used, or have no such part.
    """
    part, rows = rows_of(target, head, split)
    return Gold(name, part, head.read_gold(rows))
