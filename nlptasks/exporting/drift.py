"""Drift of an export: how each head's main metric on labelled data differs from PyTorch's."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nlptasks.errors import BackendError, listing
from nlptasks.inference.engine import Engine
from nlptasks.inference.scoring import GoldData

_log = logging.getLogger("nlptasks")

MAX_POINTS = 0.5
"""Points by which an export may change a head's main metric; a point is a hundredth of its value for perfect predictions."""


@dataclass(frozen=True)
class Check:
    """A head's main metric on labelled data, before and after the export.

    Attributes:
        metric: its name.
        split: the part of the data.
        rows: number of rows.
        reference: its value on PyTorch in fp32.
        exported: its value on the export.
        points: points by which the export changes it.
    """

    metric: str
    split: str
    rows: int
    reference: float
    exported: float
    points: float


def check_all(reference: Engine, exported: Engine, gold: Sequence[GoldData]) -> dict[str, Check]:
    """Return the check of each head that has labelled data."""
    return {one.head: _check(one, reference, exported) for one in gold}


def _check(gold: GoldData, reference: Engine, exported: Engine) -> Check:
    rows = len(gold.examples)
    _log.info("evaluating %s on both backends, on %d rows of %s", gold.head, rows, gold.split)
    before, after = (gold.evaluate(engine) for engine in (reference, exported))
    metric = before.main_metric
    one, two = (float(found.metrics[metric]) for found in (before, after))
    return Check(metric, gold.split, rows, one, two, points(one, two, before.scale))


def points(before: float, after: float, scale: float) -> float:
    """Return the points by which a metric changes; `scale` is its value for perfect predictions."""
    return 100 * (after - before) / scale


def moves(points: float) -> bool:
    """Return True if a change of so many points is too much; nan is."""
    return not abs(points) <= MAX_POINTS


def refuse_drift(where: str, checks: Mapping[str, Check], *, older: bool) -> None:
    """Refuse an export that changes a metric too much.

    Args:
        where: for the message.
        checks: by head.
        older: True if an older export is kept.

    Raises:
        BackendError: a metric changes by more than `MAX_POINTS`.
    """
    moved = [
        f"{check.metric} of {head} from {check.reference:.4f} to {check.exported:.4f} ({check.points:+.2f} points on "
        f"{check.rows} rows of {check.split})"
        for head, check in checks.items()
        if moves(check.points)
    ]
    if moved:
        kept = "the older export is kept" if older else "it was not written"
        problem = f"changes {listing(moved)}, by more than {MAX_POINTS} points: {kept}"
        raise BackendError(where, problem, "use another precision, or accept it with `accept_drift=True`")
