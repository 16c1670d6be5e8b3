"""Evaluating a model's head on labelled data, through the same engine that predicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nlptasks.config import Target, parse_target
from nlptasks.data import load_part
from nlptasks.engine import CHUNK_ITEMS
from nlptasks.files import check_columns
from nlptasks.pipeline import pipeline


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


def evaluate(
    model: str | Path, target: str | Target, *, split: str | None = None, backend: str = "auto", device: str = "auto"
) -> Evaluation:
    """Evaluate one head on one data set.

    Args:
        model: the model's folder.
        target: the head's name and its data, as on the command line (``ner=DATA``) or as an object, whose options are those
            that may be changed at run.
        split: ``train``, ``dev`` or ``test``; None for test, else dev, else all of a single file.
        backend: as for `pipeline`.
        device: as for `pipeline`.

    Raises:
        UsageError: the model has no such head, or it no such option.
        DataError: the data cannot be used, or have no such part.
    """
    target = parse_target(target) if isinstance(target, str) else target
    options = {target.name: target.options} if target.options else None
    pipe = pipeline([target.name], model=model, backend=backend, device=device, options=options)
    name, head = next(iter(pipe.heads.items()))
    place = Path(target.data) if target.data else head.sample_folder()
    check_columns(target.columns, head.fields)
    part, rows = load_part(place, split, head.formats, target.columns)
    examples = head.read_gold(rows)
    items = ({name: example} for example in examples)
    results = [found[name] for found in pipe.engine.stream(items, first_chunk=CHUNK_ITEMS)]
    return Evaluation(name, part, head.main_metric, head.metrics(examples, results), head.measured_by())
