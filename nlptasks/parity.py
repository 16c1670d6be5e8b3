"""How two runtimes compare on the samples of a graph."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from nlptasks.tracing import Traceable
from nlptasks.types import Runtime

Found = list[dict[str, np.ndarray]]
"""The values that count, of every output, for every sample."""


@dataclass(frozen=True)
class Parity:
    """How far what one runtime gives is from what another gives.

    Attributes:
        max_difference: largest absolute difference of any output, in the output's own unit; nan if one is no number.
        agreement: share of best labels (of a writer: tokens) that are the same, in 0..1; None where there are none.
    """

    max_difference: float
    agreement: float | None


def outputs_of(runtime: Runtime, graph: Traceable) -> Found:
    """The outputs for every sample."""
    found = []
    for inputs in graph.samples:
        outputs = runtime.run(graph.name, {name: tensor.numpy() for name, tensor in inputs.items()})
        found.append({name: graph.counts(name, runtime.fetch(tensor), inputs) for name, tensor in outputs.items()})
    return found


def compare(graph: Traceable, expected: Found, found: Found) -> Parity:
    """What one runtime gave, against what another gave.

    Raises:
        ValueError: they do not give the same outputs, or not in the same shapes.
    """
    for one, two in zip(expected, found, strict=True):
        shapes = [{name: value.shape for name, value in own.items()} for own in (one, two)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"it gives {shapes[1]}, expected {shapes[0]}")
    pairs = [(name, one[name], two[name]) for one, two in zip(expected, found, strict=True) for name in one]
    best = [
        (one.argmax(-1).ravel(), two.argmax(-1).ravel())
        for name, one, two in pairs
        if name in graph.labels and one.size
    ]
    same = np.concatenate([one == two for one, two in best]) if best else None
    # Python's max() passes over nan, numpy's does not
    worst = np.max([np.abs(one - two).max() for _, one, two in pairs if one.size], initial=0.0)
    return Parity(float(worst), None if same is None else float(same.mean()))


def worst(parities: Iterable[Parity]) -> Parity:
    """The largest difference and the least agreement of several graphs."""
    all_of = list(parities)
    agreements = [parity.agreement for parity in all_of if parity.agreement is not None]
    difference = float(np.max([parity.max_difference for parity in all_of]))
    return Parity(difference, min(agreements, default=None))
