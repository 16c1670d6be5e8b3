"""The ways to run a model, side by side: speed, latency, memory and the task's own metric, and which of them to take."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

from nlptasks.benchmarking.worker import CALLED_WITH, TRANSFORMERS, Plan, count
from nlptasks.config import Target
from nlptasks.errors import BackendError, NlptasksError, UsageError, listing
from nlptasks.exporting.drift import moves, points
from nlptasks.exporting.exporter import export
from nlptasks.exporting.opening import export_problem
from nlptasks.exporting.precisions import PRECISIONS
from nlptasks.models.huggingface import to_hugging_face
from nlptasks.models.manifest import EXPORTS
from nlptasks.models.model import ModelFolder
from nlptasks.pipeline import suitable_precisions
from nlptasks.runtimes.pytorch import has_bf16, torch_device

_BASE = "torch"
"""The way that the others are compared with."""


@dataclass(frozen=True)
class Measured:
    """What was measured of one way to run a model.

    Attributes:
        way: what ``--backend`` takes, or ``transformers.pipeline``.
        texts_per_second: the median of the rounds.
        tokens_per_second: the same, in tokens that the backbone reads.
        p50: seconds for one text alone, the median.
        p95: the same, of 95 of 100.
        memory: most memory that the process had, libraries and all, in MiB; None where the system does not say.
        metrics: by head, its main metric; empty without gold answers.
    """

    way: str
    texts_per_second: float
    tokens_per_second: float
    p50: float
    p95: float
    memory: float | None
    metrics: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Benchmark:
    """The ways to run a model, side by side.

    Attributes:
        texts: how many were run, each once: what is said twice is read once anyway.
        tokens: in them.
        ways: what was measured, PyTorch first.
        failed: by way, why it could not be measured.
        made: of the ways, those whose export was made for this and is gone, with the command that makes it again.
        unproved: the heads without gold answers, of which no metric says what a way changes.
        best: the fastest of ours that keeps every metric within half a point of PyTorch's; if a head is unproved, of those that
            keep the numbers.
    """

    texts: int
    tokens: int
    ways: tuple[Measured, ...]
    failed: Mapping[str, str]
    made: Mapping[str, str]
    unproved: tuple[str, ...]
    best: str


def benchmark(
    model: str | Path,
    targets: Iterable[Target] = (),
    *,
    heads: Sequence[str] | None = None,
    source: str | Path | None = None,
    split: str | None = None,
    device: str = "auto",
    rounds: int = 3,
    most: int = 1000,
) -> Benchmark:
    """Measure every way to run a model on this machine, each in a process of its own, in turn.

    What is not exported yet is exported into a copy, which is removed afterwards. All processes hold the model at the same time.

    Args:
        model: the model's folder.
        targets: heads and labelled data; heads without any are measured on their sample.
        heads: to run; without a wish those that have data here, or else all.
        source: a file of texts to take instead; then there are no metrics.
        split: the part of the data, as for `evaluate`.
        device: ``auto``, ``cpu`` or ``cuda``.
        rounds: how often each way runs all texts.
        most: rows that are taken of each head's data.

    Raises:
        UsageError: there is no such head, or no text.
        DataError: the data cannot be used.
        ModelError: the folder is no model.
        BackendError: PyTorch itself cannot run it here.
    """
    stored = ModelFolder.open(model)
    names, given = _data(stored, heads, list(targets))
    plan = Plan(str(stored.path), _BASE, device, names, given, str(source or ""), split, most, {})
    size = count(plan)
    if not size["tokens"]:
        raise UsageError(str(source or model), f"has no text that {listing(names)} can read", "give HEAD=DATA")
    with contextlib.ExitStack() as stack:
        plans, failed = _plans(stored, plan, stack)
        workers = {}
        for name, own in plans.items():
            try:
                workers[name] = stack.enter_context(_worker(own, size["texts"]))
            except BackendError as error:
                failed[name] = error.problem
        found, broken = _measure(workers, size, rounds)
        failed |= broken
    if _BASE in failed:
        raise BackendError(str(model), f"cannot be run on PyTorch ({failed[_BASE]})", "run 'nlptasks doctor'")
    perfect = {name: head.perfect for name, head in stored.heads(names, device="meta").items()}
    unproved = tuple(name for name in names if not found[0].metrics.get(name))
    best = _best(found, perfect, proved=not unproved)
    lost = [name.partition(":")[2] for name, own in plans.items() if own.model != plan.model]
    made = {f"onnx:{precision}": f"nlptasks export {stored.path} --precision {precision}" for precision in lost}
    return Benchmark(size["texts"], size["tokens"], tuple(found), failed, made, unproved, best)


def _data(
    stored: ModelFolder, wanted: Sequence[str] | None, targets: Sequence[Target]
) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """The heads that are run, and the data of those that have data.

    Raises:
        UsageError: a head is given twice, or is not run.
    """
    given: dict[str, dict[str, Any]] = {}
    named = dict.fromkeys(target.name for target in targets) if wanted is None else wanted
    heads = stored.head_names(list(named) or None)
    for target in targets:
        name = stored.head_name(target.name)
        if name in given or name not in heads:
            problem = "has data twice" if name in given else f"has data and is not run ({listing(heads)} are)"
            raise UsageError(name, problem, "give each head that is run one data set")
        given[name] = asdict(target)
    return heads, given


class _Worker:
    """The near side of a process that answers questions."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], said: IO[bytes]) -> None:
        self._name, self._process, self._said = name, process, said

    def ask(self, question: str) -> Any:
        """The answer.

        Raises:
            BackendError: the way fails, or its process has died.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = b""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(question.encode() + b"\n")
            line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"failed": self._last_words()}
        if "failed" in answer:
            raise BackendError(self._name, answer["failed"], "take another way")
        return answer["found"]

    def _last_words(self) -> str:
        """How the process ended, and the last line that it wrote."""
        code = self._process.wait()
        end = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        self._said.seek(0)
        lines = self._said.read().decode("utf-8", "replace").split("\n")
        return ": ".join([f"its process {end}", *list(filter(None, map(str.strip, lines)))[-1:]])


@contextlib.contextmanager
def _worker(plan: Plan, texts: int) -> Iterator[_Worker]:
    """A process that has opened one way.

    Raises:
        BackendError: it cannot be opened.
    """
    command = [
        sys.executable,
        "-P",
        "-m",
        "nlptasks.benchmarking.worker",
    ]  # -P: nothing that lies in the current folder is imported
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(  # noqa: S603 (a command of our own)
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, bufsize=0
        ) as process,
    ):
        try:
            worker = _Worker(plan.backend, process, said)
            worker.ask(json.dumps([asdict(plan), texts]))
            yield worker
        finally:
            process.kill()


def _plans(stored: ModelFolder, plan: Plan, stack: contextlib.ExitStack) -> tuple[dict[str, Plan], dict[str, str]]:
    """A plan for each way, by its name, and why there is none for the others."""
    place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    failed: dict[str, str] = {}
    plans = {_BASE: plan}
    if has_bf16(torch_device(plan.device)):
        plans["torch:bf16"] = replace(plan, backend="torch:bf16")
    else:
        failed["torch:bf16"] = "the device does not multiply bf16 itself"
    suitable = suitable_precisions(plan.device)
    for precision in PRECISIONS:
        name = f"onnx:{precision}"
        if precision not in suitable:
            failed[name] = f"is {PRECISIONS[precision].purpose}, of another kind than this device"
            continue
        try:
            folder = _exported(stored, precision, plan.heads, place)
        except (NlptasksError, OSError) as error:
            failed[name] = _told(error)
        else:
            plans[name] = replace(plan, backend=name, model=str(folder))
    try:
        plans[TRANSFORMERS] = replace(plan, backend=TRANSFORMERS, checkpoints=_checkpoints(stored, plan.heads, place))
    except (NlptasksError, OSError) as error:
        failed[TRANSFORMERS] = _told(error)
    return plans, failed


def _told(error: NlptasksError | OSError) -> str:
    return error.problem if isinstance(error, NlptasksError) else str(error)


def _exported(stored: ModelFolder, precision: str, heads: Sequence[str], place: Path) -> Path:
    """A folder with the model and a fresh export of it: its own, or a copy's."""
    if export_problem(stored, precision, heads) is None:
        return stored.path
    copy = place / "model"
    if not copy.exists():
        shutil.copytree(stored.path, copy, ignore=shutil.ignore_patterns(EXPORTS, ".*"))
    export(copy, precision=precision)
    return copy


def _checkpoints(stored: ModelFolder, heads: Sequence[str], place: Path) -> dict[str, list[str]]:
    """By head, the name of the pipeline that transformers has for it, and the folder of a checkpoint.

    Raises:
        UsageError: transformers has none for a head.
        ModelError: a head cannot be written as a checkpoint.
    """
    from transformers.pipelines import SUPPORTED_TASKS

    known = {cls.__name__: task for task in CALLED_WITH for cls in SUPPORTED_TASKS[task]["pt"]}
    found = {}
    for name, head in stored.heads(list(heads), device="meta").items():
        if head.hf_auto not in known:
            raise UsageError(TRANSFORMERS, f"there is none for {name} ({head.hf_auto})", "measure other heads")
        folder = place / f"checkpoint {name}"
        to_hugging_face(stored.path, name, output=folder)
        found[name] = [known[head.hf_auto], str(folder)]
    return found


def _measure(
    workers: Mapping[str, _Worker], size: Mapping[str, int], rounds: int
) -> tuple[list[Measured], dict[str, str]]:
    """Every way in turn, as often as there are rounds: what else the machine does meets all of them."""
    times: dict[str, list[float]] = {name: [] for name in workers}
    failed: dict[str, str] = {}
    for _ in range(1 + rounds):  # the first is for warming up
        for name, worker in workers.items():
            with _noting(failed, name):
                if name not in failed:
                    times[name].append(worker.ask("throughput"))
    found = []
    for name, worker in workers.items():
        if name in failed:
            continue
        with _noting(failed, name):
            seconds = statistics.median(times[name][1:])
            alone = sorted(worker.ask("latencies"))
            found.append(
                Measured(
                    way=name,
                    texts_per_second=size["texts"] / seconds,
                    tokens_per_second=size["tokens"] / seconds,
                    p50=statistics.median(alone),
                    p95=alone[int(0.95 * (len(alone) - 1))],
                    memory=worker.ask("memory"),
                    metrics=worker.ask("metrics"),
                )
            )
    return found, failed


@contextlib.contextmanager
def _noting(failed: dict[str, str], name: str) -> Iterator[None]:
    """Note why a way fails, and go on with the others."""
    try:
        yield
    except BackendError as error:
        failed[name] = error.problem


def _best(ways: Sequence[Measured], perfect: Mapping[str, float], *, proved: bool) -> str:
    """The fastest of ours that answers as PyTorch does: as metrics prove, or else because it has the same numbers."""
    base = next(one for one in ways if one.way == _BASE)
    exact = (_BASE, "onnx:fp32")
    kept = [
        one
        for one in ways
        if one.way == _BASE or (one.way != TRANSFORMERS and (one.way in exact or proved) and _keeps(one, base, perfect))
    ]
    return max(kept, key=lambda one: one.texts_per_second).way


def _keeps(one: Measured, base: Measured, perfect: Mapping[str, float]) -> bool:
    return all(
        not moves(points(value, one.metrics[head][name], perfect[head]))
        for head, metrics in base.metrics.items()
        for name, value in metrics.items()
    )
