"""Evaluating a head on labelled data, through the pipeline that predicts."""

from __future__ import annotations

from pathlib import Path

from nlptasks.config import Target, parse_target
from nlptasks.heads.base import read_gold
from nlptasks.inference.engine import CHUNK_ITEMS
from nlptasks.inference.scoring import Evaluation, evaluation_of, rows_of
from nlptasks.pipeline import pipeline


def evaluate(
    model: str | Path, target: str | Target, *, split: str | None = None, backend: str = "auto", device: str = "auto"
) -> Evaluation:
    """Evaluate one head on one data set.

    Args:
        model: the model's folder.
        target: the head's name and its data, as on the command line (``ner=DATA``) or as an object, whose options are those
            that may change at run time.
        split: ``train``, ``dev`` or ``test``; None for test, else dev, else all of a single file.
        backend: as for `pipeline`.
        device: as for `pipeline`.

    Raises:
        UsageError: the model has no such head, or the head no such option.
        DataError: the data cannot be used, or have no such part.
    """
    target = parse_target(target) if isinstance(target, str) else target
    options = {target.name: target.options} if target.options else None
    pipe = pipeline([target.name], model=model, backend=backend, device=device, options=options)
    [(name, head)] = pipe.heads.items()
    part, rows = rows_of(target, head, split)
    read_gold(head, rows)  # reports several wrong rows together
    predictions = pipe.predict(rows, gold=True, first_chunk=CHUNK_ITEMS)
    pairs = ((one.examples[name], one.results[name]) for one in predictions)
    return evaluation_of(name, part, head, pairs)
