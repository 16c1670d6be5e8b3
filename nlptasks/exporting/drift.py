"""Whether an export answers as PyTorch does: each head's main metric on labelled data, on both."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nlptasks.errors import BackendError, listing
from nlptasks.inference.engine import Engine
from nlptasks.inference.scoring import Gold
from nlptasks.models.model import Model
from nlptasks.runtimes.base import Runtime
from nlptasks.runtimes.pytorch import open_torch
from nlptasks.text.windowing import Tokenizer

_log = logging.getLogger("nlptasks")

MAX_POINTS = 0.5
"""Points by which an export may move a head's main metric; a point is a hundredth of what it is for answers without a fault."""


@dataclass(frozen=True)
class Check:
    """A head's main metric on labelled data, on PyTorch in fp32 and on the export.

    Attributes:
        metric: its name.
        split: the part of the data.
        rows: how many were answered.
        torch: what it is on PyTorch.
        onnx: what it is on the export.
        points: by how many points the export moves it.
    """

    metric: str
    split: str
    rows: int
    torch: float
    onnx: float
    points: float


def check_all(model: Model, tokenizer: Tokenizer, onnx: Runtime, gold: Sequence[Gold]) -> dict[str, Check]:
    """The metric of each head that is to be checked, on both runtimes; the model is good for inference only afterwards."""
    if not gold:
        return {}
    runtimes = (open_torch(model.graphs(), "cpu"), onnx)
    before, after = (Engine(model.heads, tokenizer, runtime, model.backbone.info) for runtime in runtimes)
    return {one.head: _check(one, model.heads[one.head].perfect, before, after) for one in gold}


def _check(gold: Gold, perfect: float, before: Engine, after: Engine) -> Check:
    _log.info("measuring %s on both, on %d rows of %s", gold.head, len(gold.examples), gold.split)
    found = [gold.measure(engine) for engine in (before, after)]
    one, two = (float(each.metrics[each.main_metric]) for each in found)
    return Check(found[0].main_metric, gold.split, len(gold.examples), one, two, points(one, two, perfect))


def points(before: float, after: float, perfect: float) -> float:
    """By how many points a metric moves; `perfect` is what it is for answers without a fault."""
    return 100 * (after - before) / perfect


def moves(points: float) -> bool:
    """Whether these are too many for the answers to count as the same; nan is."""
    return not abs(points) <= MAX_POINTS


def refuse_drift(where: str, checks: Mapping[str, Check], *, older: bool) -> None:
    """Refuse an export that answers otherwise.

    Args:
        where: for the message.
        checks: by head.
        older: whether an older export stays in its place.

    Raises:
        BackendError: a metric moves by more than `MAX_POINTS`.
    """
    moved = [
        f"{check.metric} of {head} from {check.torch:.4f} to {check.onnx:.4f} ({check.points:+.2f} points on {check.rows} rows "
        f"of {check.split})"
        for head, check in checks.items()
        if moves(check.points)
    ]
    if moved:
        stays = "the older export stays" if older else "it was not written"
        problem = f"moves {listing(moved)}, by more than {MAX_POINTS} points: {stays}"
        raise BackendError(where, problem, "take another precision, or accept it with --accept-drift")
