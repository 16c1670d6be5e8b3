"""Which head learns what at which step: a pure function of seed, epoch and step.

An epoch has as many steps as one pass over every head's data. They are shared out in proportion to the root of each head's own
number of steps, times its weight: a head with few rows meets them several times in an epoch, one with many only some of them,
and goes on from there in the next. A head alone meets each of its rows once an epoch.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nlptasks.inference.batching import epoch_batches


@dataclass(frozen=True)
class Turn:
    """One optimizer step.

    Attributes:
        name: of the head that learns.
        batches: the numbers of its examples in each batch of all processes.
    """

    name: str
    batches: list[list[int]]


class Schedule:
    """The turns of a run.

    Args:
        lengths: tokens of each training example, by head.
        weights: how often a head has its turn, in relation to the others.
        budget: tokens in a batch.
        size: batches in a step.
        seed: of the order.
    """

    def __init__(
        self,
        lengths: Mapping[str, Sequence[int]],
        *,
        weights: Mapping[str, float],
        budget: int,
        size: int,
        seed: int,
    ) -> None:
        self._lengths, self._budget, self._size, self._seed = lengths, budget, size, seed
        self._last: dict[str, tuple[int, list[list[list[int]]]]] = {}
        counts = {name: len(self._pass(name, 0)) for name in lengths}
        claims = {name: weights[name] * math.sqrt(count) for name, count in counts.items()}
        total = sum(counts.values())
        steps = {name: max(1.0, total * claim / sum(claims.values())) for name, claim in claims.items()}
        self.passes = {name: steps[name] / counts[name] for name in lengths}
        """How often a head meets its rows in an epoch."""

    def epoch(self, epoch: int) -> list[Turn]:
        """The turns of an epoch, from 0."""
        own = {name: self._own(name, epoch) for name in self._lengths}
        order = [name for name, steps in own.items() for _ in steps]
        if len(own) > 1:
            random.Random(f"{self._seed}/{epoch}/turns").shuffle(order)
        left = {name: iter(steps) for name, steps in own.items()}
        return [Turn(name, next(left[name])) for name in order]

    def _own(self, name: str, epoch: int) -> list[list[list[int]]]:
        """The steps of one head in an epoch: those between two points of its endless row of passes."""
        begin, end = self.passes[name] * epoch, self.passes[name] * (epoch + 1)
        steps: list[list[list[int]]] = []
        for number in range(math.floor(begin), math.ceil(end)):
            found = self._pass(name, number)
            first, last = (round((min(max(point, number), number + 1) - number) * len(found)) for point in (begin, end))
            steps += found[first:last]
        return steps

    def _pass(self, name: str, number: int) -> list[list[list[int]]]:
        """The steps of one pass over a head's data; the last one is remembered, since several epochs may be parts of it."""
        last = self._last.get(name)
        if last is None or last[0] != number:
            batches = epoch_batches(self._lengths[name], self._budget, seed=self._seed, epoch=number)
            last = number, [batches[start : start + self._size] for start in range(0, len(batches), self._size)]
            self._last[name] = last
        return last[1]
