"""Comparing the outputs of two runtimes on the samples of a graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from nlptasks.exporting.tracing import Traceable
from nlptasks.runtimes.base import Runtime, head_in

Found = list[dict[str, np.ndarray]]
"""The compared values of every output, for every sample."""


@dataclass(frozen=True)
class Parity:
    """Differences between the outputs of two runtimes.

    Attributes:
        max_difference: largest absolute difference of any output, in the output's own unit; nan if a value is nan.
        agreement: fraction of positions with the same best label or token, in 0..1; None if there are no labels.
        differences: the largest difference by head.
    """

    max_difference: float
    agreement: float | None
    differences: Mapping[str, float] = field(default_factory=dict)


def outputs_of(runtime: Runtime, graph: Traceable) -> Found:
    """Return the outputs for every sample."""
    found = []
    for inputs in graph.samples:
        outputs = runtime.run(graph.name, {name: tensor.numpy() for name, tensor in inputs.items()})
        found.append({name: graph.counts(name, runtime.fetch(tensor), inputs) for name, tensor in outputs.items()})
    return found


def compare(graph: Traceable, expected: Found, found: Found) -> Parity:
    """Compare the outputs of one runtime with those of another.

    Raises:
        ValueError: they have other names or shapes.
    """
    for one, two in zip(expected, found, strict=True):
        shapes = [{name: value.shape for name, value in own.items()} for own in (one, two)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"the outputs are {shapes[1]}, expected {shapes[0]}")
    pairs = [(name, one[name], two[name]) for one, two in zip(expected, found, strict=True) for name in one]
    best = [
        (one.argmax(-1).ravel(), two.argmax(-1).ravel())
        for name, one, two in pairs
        if name in graph.labels and one.size
    ]
    same = np.concatenate([one == two for one, two in best]) if best else None
    by_head: dict[str, list[float]] = {}
    for name, before, after in pairs:
        head = head_in(graph.name) or head_in(name)
        by_head.setdefault(head, []).extend([float(np.abs(before - after).max())] if before.size else [])
    differences = {head: _largest(own) for head, own in by_head.items()}
    return Parity(_largest(differences.values()), None if same is None else float(same.mean()), differences)


def worst(parities: Iterable[Parity]) -> Parity:
    """Return the largest differences and the lowest agreement of several graphs."""
    all_of = list(parities)
    agreements = [parity.agreement for parity in all_of if parity.agreement is not None]
    heads = dict.fromkeys(head for parity in all_of for head in parity.differences)
    differences = {head: _largest(one.differences.get(head, 0.0) for one in all_of) for head in heads}
    return Parity(_largest(one.max_difference for one in all_of), min(agreements, default=None), differences)


def _largest(values: Iterable[float]) -> float:
    """Return the largest value, nan if one is nan: Python's own max() skips nan."""
    return float(np.max(list(values), initial=0.0))
