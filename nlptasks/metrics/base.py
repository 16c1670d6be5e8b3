"""Mergeable counts, and the metrics computed from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Counts:
    """The contribution of one example to the metrics. Merging the counts of all examples gives the metrics of all.

    Attributes:
        sums: numbers that add up, such as true positives by label.
        rows: values that metrics of a whole corpus need one by one, such as scores to rank, or texts for BLEU.
    """

    sums: Mapping[Hashable, float] = field(default_factory=dict)
    rows: tuple[Any, ...] = ()


def merge(counts: Iterable[Counts]) -> Counts:
    """Return the counts of several examples together."""
    sums: Counter[Hashable] = Counter()
    rows: list[Any] = []
    for one in counts:
        for key, value in one.sums.items():
            sums[key] += value  # type: ignore[assignment]  # Counter's stubs know integers only
        rows += one.rows
    return Counts(dict(sums), tuple(rows))


@dataclass(frozen=True)
class Metrics:
    """The metrics of some examples.

    Attributes:
        values: metrics by name.
        main: name of the one that training maximises.
        scale: value of the main metric for perfect predictions; a point is a hundredth of it.
        signature: how they were computed, where the numbers alone do not say it, such as the sacreBLEU signature.
    """

    values: Mapping[str, float]
    main: str
    scale: float = 1.0
    signature: str = ""

    @property
    def score(self) -> float:
        """The main metric."""
        return self.values[self.main]
