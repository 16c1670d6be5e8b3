"""A model with a head of every task, and the difference of its results on two backends.

These models are hardly trained: equal graphs and results do not depend on good ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import nlptasks
from nlptasks.config import Target, TrainSettings, settings_of
from nlptasks.data.datasets import load_data
from nlptasks.heads.base import sample_folder
from nlptasks.models.folder import ModelFolder
from nlptasks.pipeline import pipeline
from nlptasks.registry import head_class, tasks

_GIVEN = {"max_new_tokens": 12, "decoder_layers": 2, "source_language": "en", "target_language": "de"}
"""Values of options, for heads that have them."""


def built_in() -> list[str]:
    """Return the tasks of the library; other packages may be installed, or made for a test."""
    return sorted(name for name, one in tasks().items() if one.point.value.startswith(f"{nlptasks.__name__}."))


def targets(chosen: Sequence[str], place: Path, *, rows: int) -> list[Target]:
    """Return targets with some rows of the sample of each task, which are written into a folder."""
    return [_target(task, place / task, rows) for task in chosen]


def _target(task: str, place: Path, rows: int) -> Target:
    cls = head_class(task)
    place.mkdir(parents=True)
    for part in ("train", "dev"):
        [sample] = sample_folder(cls).glob(f"{part}.jsonl")
        lines = sample.read_text(encoding="utf-8").splitlines(keepends=True)
        (place / sample.name).write_text("".join(lines[:rows]), encoding="utf-8")
    options = {item.name: _GIVEN[item.name] for item in settings_of(cls.Config) if item.name in _GIVEN}
    return Target(task, task, str(place), options=options)


def train(given: Sequence[Target], backbone: Path, output: Path, *, epochs: int = 1) -> Path:
    """Train heads together and return the model's folder."""
    settings = TrainSettings(
        backbone=str(backbone), epochs=epochs, lr=1e-3, head_lr=2e-3, precision="fp32", device="cpu"
    )
    return nlptasks.train(given, output=output, settings=settings).folder


def sample_rows(chosen: Sequence[str], count: int) -> list[Mapping[str, Any]]:
    """Return some rows of each task's sample that are not in train."""
    found = []
    for task in chosen:
        cls = head_class(task)
        found += [row.fields for row in load_data(sample_folder(cls), cls.schema.formats, {}).parts["test"][:count]]
    return found


def has_beams(task: str) -> bool:
    """Return True if a task generates text with a beam search."""
    return any(item.name == "num_beams" for item in settings_of(head_class(task).Config))


def answers(model: Path, backend: str, rows: Sequence[Mapping[str, Any]], *, beams: int = 1) -> list[dict[str, Any]]:
    """Return the results of every head that can read a row."""
    options = {name: {"num_beams": beams} for name in ModelFolder.open(model).records if has_beams(name)}
    pipe = pipeline(model=model, backend=backend, device="cpu", options=options)
    return list(pipe(rows))


@dataclass(frozen=True)
class Likeness:
    """How similar the results of a head are on two backends.

    Attributes:
        rows: number of rows that it read.
        same: share of rows with the same result, apart from scores.
        distinct: number of different results on the first backend; if there is one only, `same` says little.
        score: largest difference of a number in the results that are the same.
    """

    rows: int
    same: float
    distinct: int
    score: float


def likeness(expected: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]) -> dict[str, Likeness]:
    """Return how similar results are, by head."""
    heads = sorted({name for results in expected for name in results})
    return {name: _likeness([(one[name], two[name]) for one, two in zip(expected, found, strict=True) if name in one])
            for name in heads}  # fmt: skip


def _likeness(pairs: Sequence[tuple[Any, Any]]) -> Likeness:
    read = [(_said(one), _said(two)) for one, two in pairs]
    same = [(one, two) for one, two in read if one[0] == two[0]]
    apart = [abs(a - b) for one, two in same for a, b in zip(one[1], two[1], strict=True)]
    return Likeness(
        rows=len(pairs),
        same=round(len(same) / len(pairs), 4),
        distinct=len({repr(one[0]) for one, _ in read}),
        score=max(apart, default=0.0),
    )


def _said(value: Any) -> tuple[Any, list[float]]:
    """Return a result without its numbers, and the numbers."""
    if isinstance(value, float):
        return None, [value]
    if is_dataclass(value):
        value = {item.name: getattr(value, item.name) for item in fields(value)}
    if isinstance(value, Mapping):
        parts = {name: _said(value[name]) for name in sorted(value)}
        return {name: said for name, (said, _) in parts.items()}, [n for _, own in parts.values() for n in own]
    if isinstance(value, list | tuple):
        inner = [_said(part) for part in value]
        return [said for said, _ in inner], [n for _, own in inner for n in own]
    return value, []
