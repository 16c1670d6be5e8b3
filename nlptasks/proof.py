"""Whether an export answers as PyTorch does: each head's main metric on labelled data, on both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nlptasks.engine import Engine
from nlptasks.errors import BackendError
from nlptasks.measuring import Gold
from nlptasks.model import Model
from nlptasks.runtime.pytorch import open_torch
from nlptasks.tokenizer import Tokenizer
from nlptasks.types import Runtime

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
    found = [gold.measure(engine) for engine in (before, after)]
    one, two = (float(each.metrics[each.main_metric]) for each in found)
    return Check(found[0].main_metric, gold.split, len(gold.examples), one, two, points(one, two, perfect))


def points(before: float, after: float, perfect: float) -> float:
    """By how many points a metric moves; `perfect` is what it is for answers without a fault."""
    return 100 * (after - before) / perfect


def moves(points: float) -> bool:
    """Whether these are too many for the answers to count as the same; nan is."""
    return not abs(points) <= MAX_POINTS


def refuse_drift(where: str, checks: Mapping[str, Check]) -> None:
    """Refuse an export that answers otherwise.

    Raises:
        BackendError: a metric moves by more than `MAX_POINTS`.
    """
    for head, check in checks.items():
        if moves(check.points):
            by = f"{check.points:+.2f} points, expected at most {MAX_POINTS} either way"
            moved = f"moves {check.metric} of {head} from {check.torch:.4f} to {check.onnx:.4f} ({by})"
            fix = "take another precision, or accept it with --accept-drift"
            raise BackendError(where, f"{moved} on {check.rows} rows of {check.split}, and was not written", fix)
