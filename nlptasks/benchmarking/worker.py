"""One way to run a model, in a process of its own: the far side of `nlptasks.benchmarking.runner`.

Started as ``python -m nlptasks.benchmarking.worker``. It reads JSON lines from stdin, one question a line, of which the first
says what to open, and answers each with one line on stdout.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol, TextIO

from nlptasks.config import Target
from nlptasks.data.readers import TEXTS, read_file
from nlptasks.errors import DataError, NlptasksError, UsageError, first_line
from nlptasks.heads.base import Head
from nlptasks.inference.engine import CHUNK_ITEMS
from nlptasks.inference.scoring import Gold, read_gold, rows_of
from nlptasks.models.model import ModelFolder
from nlptasks.pipeline import examples_of, pipeline
from nlptasks.types import Row

TRANSFORMERS = "transformers.pipeline"
"""The way of those who do without us."""

CALLED_WITH: Mapping[str, Mapping[str, Any]] = {
    "token-classification": {"aggregation_strategy": "first"},
    "text-classification": {"truncation": True},
}
"""By transformers' names of its pipelines, what gives whole words, and answers for texts that are too long."""

_BATCH_SIZES = (1, 4, 8, 16, 32, 64)
_TRIED = 100
"""Rows by which the best of these is found, and that are run one at a time."""


@dataclass(frozen=True)
class Plan:
    """What is to be measured.

    Attributes:
        model: the model's folder.
        backend: as for `pipeline`, or `TRANSFORMERS`.
        device: ``auto``, ``cpu`` or ``cuda``.
        heads: their names.
        targets: by head, its data, as arguments of `Target`; of heads without any the sample is taken.
        source: a file of texts that is taken instead, without gold answers; empty for none.
        split: the part of the data; None for test, else dev.
        most: rows that are taken, of each head's data.
        checkpoints: by head, name of transformers' pipeline and folder of a checkpoint, where this is the way.
    """

    model: str
    backend: str
    device: str
    heads: list[str]
    targets: dict[str, dict[str, Any]]
    source: str
    split: str | None
    most: int
    checkpoints: dict[str, list[str]]

    def target(self, head: str) -> Target:
        """The data of a head."""
        return Target(**self.targets[head]) if head in self.targets else Target(head, head)

    def rows(self, heads: Mapping[str, Head]) -> list[Row]:
        """The rows that are run: those that a head can read, each once."""
        if self.source:
            found: Iterable[Row] = islice(read_file(Path(self.source), TEXTS, {}), self.most)
        else:
            own = (rows_of(self.target(name), head, self.split)[1][: self.most] for name, head in heads.items())
            found = chain.from_iterable(own)
        distinct: dict[Any, Row] = {}
        for row in found:
            read = {name: tuple(heads[name].sources(example)) for name, example in _item(heads, row).items()}
            if read:
                distinct.setdefault(tuple(read.items()), row)
        return list(distinct.values())


class Way(Protocol):
    """Something that answers the rows of a plan."""

    def run(self, first: int, last: int | None) -> None:
        """Answer the rows from the first to before the last; None for all behind."""

    def metrics(self) -> dict[str, dict[str, float]]:
        """By head, its main metric on its gold answers."""


class _Ours:
    """A pipeline of ours."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._pipe = pipeline(plan.heads, model=plan.model, backend=plan.backend, device=plan.device)
        self._items = [_item(self._pipe.heads, row) for row in plan.rows(self._pipe.heads)]

    def run(self, first: int, last: int | None) -> None:
        """Answer rows."""
        for _ in self._pipe.engine.stream(self._items[first:last], first_chunk=CHUNK_ITEMS):
            pass

    def metrics(self) -> dict[str, dict[str, float]]:
        """By head, its main metric on its gold answers."""
        found = {}
        for name, head in self._pipe.heads.items() if not self._plan.source else ():
            try:
                gold = read_gold(self._plan.target(name), name, head, split=self._plan.split)
            except DataError:
                if name in self._plan.targets:
                    raise
                continue  # the labels of a sample need not be the model's
            measured = Gold(name, gold.split, gold.examples[: self._plan.most]).measure(self._pipe.engine)
            found[name] = {measured.main_metric: float(measured.metrics[measured.main_metric])}
        return found


class _Theirs:
    """A ``transformers.pipeline`` for each head, one after another, each at its best batch size."""

    def __init__(self, plan: Plan) -> None:
        import transformers

        heads = ModelFolder.open(plan.model).heads(plan.heads, device="meta")
        rows = plan.rows(heads)
        self._texts = [
            {name: _text(heads[name], example) for name, example in _item(heads, row).items()} for row in rows
        ]
        device = None if plan.device == "auto" else plan.device
        self._pipes = {
            name: transformers.pipeline(task, model=folder, device=device, **CALLED_WITH[task])
            for name, (task, folder) in plan.checkpoints.items()
        }
        self._sizes = dict.fromkeys(self._pipes, 1)
        self._sizes = {name: self._best_size(name) for name in self._pipes}

    def run(self, first: int, last: int | None) -> None:
        """Answer rows."""
        for name, pipe in self._pipes.items():
            texts = [own[name] for own in self._texts[first:last] if name in own]
            if texts:
                pipe(texts, batch_size=self._sizes[name])

    def metrics(self) -> dict[str, dict[str, float]]:
        """None: its answers are of another kind."""
        return {}

    def _best_size(self, name: str) -> int:
        texts = [own[name] for own in self._texts if name in own][:_TRIED]
        self._pipes[name](texts)  # to warm up
        return min(_BATCH_SIZES, key=lambda size: _seconds(lambda: self._pipes[name](texts, batch_size=size)))


def _item(heads: Mapping[str, Head], row: Row) -> dict[str, Any]:
    """The examples of a row, for each head that can read it: it may be one of another head's data."""
    return examples_of(heads, row)[0]


def _text(head: Head, example: Any) -> str:
    """The one text that a head reads of an example.

    Raises:
        UsageError: it reads several, or something before it.
    """
    sources = head.sources(example)
    if len(sources) != 1 or sources[0].second is not None or sources[0].prefix:
        raise UsageError(TRANSFORMERS, "is measured on heads that read one text a row", "leave it out")
    return sources[0].first


def count(plan: Plan) -> dict[str, int]:
    """How many texts are run, and how many tokens the backbone reads for them."""
    stored = ModelFolder.open(plan.model)
    heads = stored.heads(plan.heads, device="meta")
    items = [_item(heads, row) for row in plan.rows(heads)]
    distinct = [
        list(dict.fromkeys(chain.from_iterable(heads[name].sources(example) for name, example in item.items())))
        for item in items
    ]
    windows = stored.tokenizer().windows(list(chain.from_iterable(distinct)))
    return {"texts": len(items), "tokens": sum(len(window) for own in windows for window in own)}


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _peak_mib() -> float | None:
    """Most memory that this process had, in MiB; None where the system does not say."""
    status = Path("/proc/self/status")  # what `resource` says there may be the parent's
    if not status.exists():
        return None
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return int(lines["VmHWM"].split()[0]) / 1024


class _Asked:
    """What can be asked, each by a method's name."""

    def __init__(self, plan: Plan, texts: int) -> None:
        self._way: Way = _Theirs(plan) if plan.backend == TRANSFORMERS else _Ours(plan)
        self._texts = texts

    def throughput(self) -> float:
        """Seconds for all rows."""
        return _seconds(lambda: self._way.run(0, None))

    def latencies(self) -> list[float]:
        """Seconds for each of some rows, one at a time."""
        return [_seconds(lambda at=at: self._way.run(at, at + 1)) for at in range(min(_TRIED, self._texts))]  # type: ignore[misc]

    def metrics(self) -> dict[str, dict[str, float]]:
        """By head, its main metric."""
        return self._way.metrics()

    def memory(self) -> float | None:
        """Most memory that the process had, in MiB."""
        return _peak_mib()


def serve(questions: TextIO, answers: TextIO) -> None:
    """Answer questions until there are no more: each is the name of a method of `_Asked`; the first line is plan and texts."""
    asked: _Asked | None = None
    for line in questions:
        try:
            if asked is None:
                first: Sequence[Any] = json.loads(line)
                asked, found = _Asked(Plan(**first[0]), first[1]), None
            else:
                found = getattr(asked, line.strip())()
            answer = {"found": found}
        except Exception as error:  # whatever a way raises is what is said of it
            answer = {"failed": str(error) if isinstance(error, NlptasksError) else first_line(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever anybody prints is no answer
    serve(sys.stdin, told)
