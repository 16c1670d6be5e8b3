"""Sampling of heads and batches in joint training: a pure function of seed, epoch and step.

An epoch has as many steps as one pass over the data of all heads. Each head gets a share in proportion to its weight and the
square root of its own number of steps. So an epoch covers the data of a small head several times, and only a part of the data of
a large one; the next epoch continues from there. A single head sees each row once per epoch.
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
        name: the head that is trained.
        batches: indices of its instances in each batch, for all processes.
    """

    name: str
    batches: list[list[int]]


class Schedule:
    """The steps of all epochs.

    Args:
        lengths: number of tokens of each training instance, by head.
        weights: relative sampling weight of each head.
        budget: tokens in a batch.
        size: batches in a step.
        seed: random seed.
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
        shares = {name: weights[name] * math.sqrt(count) for name, count in counts.items()}
        total = sum(counts.values())
        steps = {name: max(1.0, total * share / sum(shares.values())) for name, share in shares.items()}
        self.passes = {name: steps[name] / counts[name] for name in lengths}
        """Number of passes over the data of each head per epoch, a fraction for large ones."""

    def epoch(self, epoch: int) -> list[Turn]:
        """Return the steps of an epoch, counted from 0."""
        by_head = {name: self._steps(name, epoch) for name in self._lengths}
        order = [name for name, steps in by_head.items() for _ in steps]
        if len(by_head) > 1:
            random.Random(f"{self._seed}/{epoch}/turns").shuffle(order)
        left = {name: iter(steps) for name, steps in by_head.items()}
        return [Turn(name, next(left[name])) for name in order]

    def _steps(self, name: str, epoch: int) -> list[list[list[int]]]:
        """Return the steps of one head in an epoch: a slice of its endless sequence of passes."""
        begin, end = self.passes[name] * epoch, self.passes[name] * (epoch + 1)
        steps: list[list[list[int]]] = []
        for number in range(math.floor(begin), math.ceil(end)):
            found = self._pass(name, number)
            first, last = (round((min(max(point, number), number + 1) - number) * len(found)) for point in (begin, end))
            steps += found[first:last]
        return steps

    def _pass(self, name: str, number: int) -> list[list[list[int]]]:
        """Return the steps of one pass over the data of a head. The last pass is cached, as several epochs may be parts of it."""
        last = self._last.get(name)
        if last is None or last[0] != number:
            batches = epoch_batches(self._lengths[name], self._budget, seed=self._seed, epoch=number)
            last = number, [batches[start : start + self._size] for start in range(0, len(batches), self._size)]
            self._last[name] = last
        return last[1]
