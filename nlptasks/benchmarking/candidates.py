"""Candidates of a benchmark: backends in each precision, and transformers' own pipelines."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

from nlptasks.config import Target
from nlptasks.data.readers import TEXTS, read_file
from nlptasks.errors import DataError, UsageError
from nlptasks.heads.base import AnyHead, examples_of, read_gold
from nlptasks.inference.engine import CHUNK_ITEMS
from nlptasks.inference.scoring import Evaluation, evaluation_of, rows_of
from nlptasks.models.folder import ModelFolder
from nlptasks.pipeline import pipeline
from nlptasks.types import Row

TRANSFORMERS = "transformers.pipeline"
"""Name of the candidate that does not use this library."""

ARGUMENTS: Mapping[str, Mapping[str, Any]] = {
    "token-classification": {"aggregation_strategy": "first"},
    "text-classification": {"truncation": True},
}
"""By name of a transformers pipeline, the arguments that give whole words and accept texts that are too long."""

_BATCH_SIZES = (1, 4, 8, 16, 32, 64)
_TRIED = 100
"""Texts that the best batch size is measured on."""


@dataclass(frozen=True)
class Workload:
    """The texts to run.

    Attributes:
        model: the model's folder.
        device: ``auto``, ``cpu`` or ``cuda``.
        heads: names of the heads to run.
        targets: data by head; the sample data are used for other heads.
        source: a file of texts to use instead, without gold answers; None for none.
        split: the part of the data; None for test, else dev.
        most: the most rows of each head's data.
    """

    model: str
    device: str
    heads: Sequence[str]
    targets: Mapping[str, Target]
    source: Path | None
    split: str | None
    most: int

    def target(self, head: str) -> Target:
        """Return the data of a head."""
        return self.targets.get(head) or Target(head, head)

    def rows(self, heads: Mapping[str, AnyHead]) -> list[Row]:
        """Return the rows that a head can read, without duplicates."""
        if self.source:
            found: Iterable[Row] = islice(read_file(self.source, TEXTS, {}), self.most)
        else:
            own = (rows_of(self.target(name), head, self.split)[1][: self.most] for name, head in heads.items())
            found = chain.from_iterable(own)
        distinct: dict[Any, Row] = {}
        for row in found:
            examples, _ = examples_of(heads, row)
            inputs = {name: tuple(heads[name].inputs(one)) for name, one in examples.items()}
            if inputs:
                distinct.setdefault(tuple(inputs.items()), row)
        return list(distinct.values())


@dataclass(frozen=True)
class Size:
    """The size of a workload: texts, and tokens that the backbone reads for them."""

    texts: int
    tokens: int


class Runner(Protocol):
    """An open candidate."""

    def run(self, first: int, last: int | None) -> None:
        """Predict for the rows from `first` to before `last`; None for all further rows."""

    def evaluate(self) -> list[Evaluation]:
        """Return the metrics of the heads that have gold answers."""


class Candidate(Protocol):
    """A way to run a model, which is sent to a worker process.

    Attributes:
        name: its name.
    """

    @property
    def name(self) -> str:
        """Its name."""

    def open(self, workload: Workload) -> Runner:
        """Open it for a workload."""


@dataclass(frozen=True)
class BackendCandidate:
    """A backend in one precision.

    Attributes:
        backend: name of the backend.
        precision: the precision.
        model: the model's folder, or a copy with an export in this precision.
        is_baseline: True for the one that the others are compared with.
    """

    backend: str
    precision: str
    model: str
    is_baseline: bool = False

    @property
    def name(self) -> str:
        """Value of the argument `backend`."""
        return f"{self.backend}:{self.precision}"

    def open(self, workload: Workload) -> Runner:
        """Open a pipeline."""
        return _PipelineRunner(self, workload)


@dataclass(frozen=True)
class TransformersCandidate:
    """A ``transformers.pipeline`` for each head.

    Attributes:
        checkpoints: by head, name of the transformers pipeline and folder of a checkpoint.
    """

    checkpoints: Mapping[str, tuple[str, str]]

    @property
    def name(self) -> str:
        """Its name."""
        return TRANSFORMERS

    def open(self, workload: Workload) -> Runner:
        """Open the pipelines."""
        return _TransformersRunner(self.checkpoints, workload)


class _PipelineRunner:
    """Runs all heads in one pipeline."""

    def __init__(self, candidate: BackendCandidate, workload: Workload) -> None:
        self._workload = workload
        self._pipe = pipeline(workload.heads, model=candidate.model, backend=candidate.name, device=workload.device)
        self._rows = workload.rows(self._pipe.heads)

    def run(self, first: int, last: int | None) -> None:
        """Predict for rows."""
        for _ in self._pipe.predict(self._rows[first:last], partial=True, first_chunk=CHUNK_ITEMS):
            pass

    def evaluate(self) -> list[Evaluation]:
        """Return the metrics of the heads that have gold answers."""
        found = []
        for name, head in self._pipe.heads.items() if not self._workload.source else ():
            part, rows = rows_of(self._workload.target(name), head, self._workload.split)
            rows = rows[: self._workload.most]
            try:
                read_gold(head, rows)
            except DataError:
                if name in self._workload.targets:
                    raise
                continue  # the sample data may have other labels than the model
            predictions = self._pipe.predict(rows, heads=[name], gold=True, first_chunk=CHUNK_ITEMS)
            pairs = ((one.examples[name], one.results[name]) for one in predictions)
            found.append(evaluation_of(name, part, head, pairs))
        return found


class _TransformersRunner:
    """Runs a ``transformers.pipeline`` for each head, one after another, each with its best batch size."""

    def __init__(self, checkpoints: Mapping[str, tuple[str, str]], workload: Workload) -> None:
        import transformers

        heads = ModelFolder.open(workload.model).heads(list(workload.heads))
        self._texts = [
            {name: _text(heads[name], example) for name, example in examples_of(heads, row)[0].items()}
            for row in workload.rows(heads)
        ]
        device = None if workload.device == "auto" else workload.device
        self._pipes = {
            name: transformers.pipeline(task, model=folder, device=device, **ARGUMENTS[task])
            for name, (task, folder) in checkpoints.items()
        }
        self._sizes = dict.fromkeys(self._pipes, 1)
        self._sizes = {name: self._best_size(name) for name in self._pipes}

    def run(self, first: int, last: int | None) -> None:
        """Predict for rows."""
        for name, pipe in self._pipes.items():
            texts = [own[name] for own in self._texts[first:last] if name in own]
            if texts:
                pipe(texts, batch_size=self._sizes[name])

    def evaluate(self) -> list[Evaluation]:
        """Return nothing: the results have another form."""
        return []

    def _best_size(self, name: str) -> int:
        texts = [own[name] for own in self._texts if name in own][:_TRIED]
        self._pipes[name](texts)  # warm-up
        return min(_BATCH_SIZES, key=lambda size: seconds(lambda: self._pipes[name](texts, batch_size=size)))


def _text(head: AnyHead, example: Any) -> str:
    """Return the single text that a head reads for an example.

    Raises:
        UsageError: it reads several texts, or text in front of it.
    """
    inputs = head.inputs(example)
    if len(inputs) != 1 or len(inputs[0].texts) != 1 or inputs[0].prefix:
        raise UsageError(TRANSFORMERS, "is measured on heads that read one text a row", "measure other heads")
    return inputs[0].texts[0]


def size_of(workload: Workload) -> Size:
    """Return the size of a workload."""
    stored = ModelFolder.open(workload.model)
    heads = stored.heads(list(workload.heads))
    distinct = []
    for row in workload.rows(heads):
        examples, _ = examples_of(heads, row)
        distinct.append(dict.fromkeys(chain.from_iterable(heads[name].inputs(one) for name, one in examples.items())))
    windows = stored.tokenizer().windows(list(chain.from_iterable(distinct)))
    return Size(len(distinct), sum(len(window) for own in windows for window in own))


def seconds(work: Callable[[], object]) -> float:
    """Return the duration of a call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
