"""Benchmark of a model on this machine: speed, latency, memory and metrics of every backend, and the fastest one to use.

Each candidate runs in a process of its own. The processes take turns, so that other load on the machine affects all of them.
"""

from __future__ import annotations

import contextlib
import shutil
import statistics
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nlptasks.benchmarking import worker
from nlptasks.benchmarking.candidates import (
    ARGUMENTS,
    TRANSFORMERS,
    BackendCandidate,
    Candidate,
    Size,
    TransformersCandidate,
    Workload,
    size_of,
)
from nlptasks.benchmarking.worker_process import Worker, start_worker
from nlptasks.config import Target, parse_target
from nlptasks.errors import BackendError, NlptasksError, UsageError, first_line, listing
from nlptasks.exporting.drift import moves, points
from nlptasks.exporting.exporter import export
from nlptasks.exporting.precisions import PRECISIONS
from nlptasks.exporting.sources import export_problem
from nlptasks.models.folder import ModelFolder
from nlptasks.models.huggingface import to_hugging_face
from nlptasks.models.manifest import EXPORTS
from nlptasks.networks.base import network_class
from nlptasks.registry import backends
from nlptasks.runtimes.providers import usable_device
from nlptasks.types import Result


@dataclass(frozen=True)
class Measured:
    """Measurements of one candidate.

    Attributes:
        name: value of the argument `backend`, or ``transformers.pipeline``.
        texts_per_second: median of the rounds.
        tokens_per_second: the same in tokens that the backbone reads.
        p50: seconds for a single text, median.
        p95: seconds for a single text, 95th percentile.
        memory: peak memory of the process with all libraries, in MiB; None if the system does not tell.
        metrics: main metric of each head; empty without gold answers.
    """

    name: str
    texts_per_second: float
    tokens_per_second: float
    p50: float
    p95: float
    memory: float | None
    metrics: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Benchmark(Result):
    """The result of a benchmark.

    Attributes:
        texts: number of different texts; each is run once.
        tokens: tokens in them.
        candidates: measurements, the baseline first.
        failed: by candidate, why it could not be measured.
        temporary: by candidate that ran on a temporary export, the command that makes a permanent one.
        unverified: heads without gold answers, for which no metric shows the effect of a candidate.
        best: the fastest backend that changes no metric by more than half a point; if a head is unverified, the fastest in the
            precision of the baseline.
    """

    texts: int
    tokens: int
    candidates: tuple[Measured, ...]
    failed: Mapping[str, str]
    temporary: Mapping[str, str]
    unverified: tuple[str, ...]
    best: str


def benchmark(
    model: str | Path,
    targets: str | Target | Iterable[str | Target] = (),
    *,
    heads: Sequence[str] | None = None,
    source: str | Path | None = None,
    split: str | None = None,
    device: str = "auto",
    rounds: int = 3,
    most: int = 1000,
) -> Benchmark:
    """Measure every backend on this machine in each of its precisions, and transformers' own pipelines.

    Missing exports are made in a temporary copy. Processes are started by spawn: a script that calls this needs
    ``if __name__ == "__main__":``.

    Args:
        model: the model's folder.
        targets: heads and labelled data, as on the command line (``ner=DATA``) or as objects; the sample data are used for
            heads without data.
        heads: names of the heads to run; by default those with data, or all if there are no data.
        source: a file of texts to use instead; there are no metrics then.
        split: the part of the data, as for `evaluate`.
        device: ``auto``, ``cpu`` or ``cuda``.
        rounds: number of times that each candidate runs all texts.
        most: the most rows of each head's data.

    Raises:
        UsageError: there is no such head, or no text.
        DataError: the data cannot be used.
        ModelError: the folder is no model.
        BackendError: the baseline cannot be run on this machine.
    """
    stored = ModelFolder.open(model)
    given_targets = [targets] if isinstance(targets, str | Target) else targets
    named = [parse_target(one) if isinstance(one, str) else one for one in given_targets]
    names, given = _data(stored, heads, named)
    texts = Path(source) if source else None
    workload = Workload(str(stored.path), device, names, given, texts, split, most)
    size = size_of(workload)
    if not size.tokens:
        raise UsageError(str(source or model), f"has no text that {listing(names)} can read", "pass HEAD=DATA")
    with tempfile.TemporaryDirectory() as place:
        candidates, failed = _candidates(stored, workload, Path(place))
        with _workers(candidates, workload, Path(place), failed) as workers:
            found, scales = _measure(workers, size, rounds, failed)
    ours = [one for one in candidates if isinstance(one, BackendCandidate)]
    base = _baseline(ours, found, failed, str(model))
    precisions = {one.name: one.precision for one in ours}
    return Benchmark(
        texts=size.texts,
        tokens=size.tokens,
        candidates=tuple(found.values()),
        failed=failed,
        temporary={one.name: _export_command(stored, one) for one in ours if one.model != workload.model},
        unverified=tuple(name for name in names if name not in scales),
        best=_best(found, base.name, precisions, scales, verified=scales.keys() >= {*names}),
    )


def _baseline(
    candidates: Iterable[BackendCandidate], found: Mapping[str, Measured], failed: Mapping[str, str], model: str
) -> BackendCandidate:
    """Return the candidate that the others are compared with.

    Raises:
        BackendError: it is not available, or could not be measured.
    """
    base = next((one for one in candidates if one.is_baseline), None)
    if base is None:
        raise BackendError(model, "cannot be measured: PyTorch is not available", "run 'nlptasks doctor'")
    if base.name not in found:
        raise BackendError(model, f"cannot be run on {base.name} ({failed[base.name]})", "run 'nlptasks doctor'")
    return base


def _export_command(stored: ModelFolder, candidate: BackendCandidate) -> str:
    return f"nlptasks export {stored.path} --precision {candidate.precision}"


def _data(
    stored: ModelFolder, wanted: Sequence[str] | None, targets: Sequence[Target]
) -> tuple[list[str], dict[str, Target]]:
    """Return the heads to run, and the data of those that have data.

    Raises:
        UsageError: a head has data twice, or has data and is not run.
    """
    given: dict[str, Target] = {}
    named = dict.fromkeys(target.name for target in targets) if wanted is None else wanted
    heads = stored.head_names(list(named) or None)
    for target in targets:
        name = stored.head_name(target.name)
        if name in given or name not in heads:
            problem = "has data twice" if name in given else f"has data and is not run ({listing(heads)} are)"
            raise UsageError(name, problem, "pass data once for each head that is run")
        given[name] = target
    return heads, given


def _candidates(stored: ModelFolder, workload: Workload, place: Path) -> tuple[list[Candidate], dict[str, str]]:
    """Return the candidates, the baseline first, and why there are no others."""
    found: list[BackendCandidate] = []
    failed: dict[str, str] = {}
    device = usable_device(workload.device)
    for registration in backends().values():
        with _recorded(failed, registration.name):
            backend = registration.make()
            for number, precision in enumerate(backend.precisions):
                is_baseline = registration.is_own and not backend.needs_export and number == 0
                one = BackendCandidate(backend.name, precision, workload.model, is_baseline=is_baseline)
                with _recorded(failed, one.name):
                    if backend.needs_export:
                        folder = _exported(stored, precision, workload.heads, place, device=device)
                        one = replace(one, model=str(folder))
                    found.append(one)
    found.sort(key=lambda one: not one.is_baseline)
    others: list[Candidate] = []
    with _recorded(failed, TRANSFORMERS):
        others.append(TransformersCandidate(_checkpoints(stored, workload.heads, place)))
    return [*found, *others], failed


def _exported(stored: ModelFolder, precision: str, heads: Sequence[str], place: Path, *, device: str) -> Path:
    """Return a folder with the model and a fresh export: the model's own folder, or a copy.

    Raises:
        UsageError: there is no such precision, or it does not suit the device.
        NlptasksError: the model cannot be exported.
    """
    kind = PRECISIONS.get(precision)
    if kind is None or not kind.suits(device):
        problem = f"is {kind.purpose}, and this device is {device}" if kind else "is no precision of exports"
        raise UsageError(precision, problem, f"use one of {listing(PRECISIONS)}")
    if export_problem(stored, precision, heads) is None:
        return stored.path
    copy = place / "model"
    if not copy.exists():
        shutil.copytree(stored.path, copy, ignore=shutil.ignore_patterns(EXPORTS, ".*"))
    if export_problem(ModelFolder.open(copy), precision, heads) is not None:
        export(copy, precision=precision)
    return copy


def _checkpoints(stored: ModelFolder, heads: Sequence[str], place: Path) -> dict[str, tuple[str, str]]:
    """Return for each head the name of its transformers pipeline and the folder of a checkpoint.

    Raises:
        UsageError: transformers has no pipeline for a head.
        ModelError: a head cannot be written as a checkpoint.
    """
    from transformers.pipelines import SUPPORTED_TASKS

    known = {cls.__name__: task for task in ARGUMENTS for cls in SUPPORTED_TASKS[task]["pt"]}
    found = {}
    for name, head in stored.heads(list(heads)).items():
        loaded_by = network_class(head.network).hf_auto
        if loaded_by not in known:
            raise UsageError(TRANSFORMERS, f"does not exist for {name} ({loaded_by})", "measure other heads")
        folder = place / f"checkpoint {name}"
        to_hugging_face(stored.path, name, output=folder)
        found[name] = (known[loaded_by], str(folder))
    return found


@contextlib.contextmanager
def _workers(
    candidates: Iterable[Candidate], workload: Workload, place: Path, failed: dict[str, str]
) -> Iterator[dict[str, Worker]]:
    """Start a worker for each candidate, by name; those that cannot be opened are recorded."""
    with contextlib.ExitStack() as stack:
        workers = {}
        for number, candidate in enumerate(candidates):
            with _recorded(failed, candidate.name):
                one = stack.enter_context(start_worker(candidate.name, place / f"{number}.log"))
                one.call(worker.open_candidate, candidate, workload)
                workers[candidate.name] = one
        yield workers


def _measure(
    workers: Mapping[str, Worker], size: Size, rounds: int, failed: dict[str, str]
) -> tuple[dict[str, Measured], dict[str, float]]:
    """Measure all candidates in turn.

    Returns:
        The measurements by candidate, and the scale of the main metric of each head with gold answers.
    """
    times: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(1 + rounds):  # the first round is a warm-up
        for name, one in workers.items():
            with _recorded(failed, name):
                if name not in failed:
                    times[name].append(one.call(worker.throughput))
    found: dict[str, Measured] = {}
    scales: dict[str, float] = {}
    for name, one in workers.items():
        if name in failed:
            continue
        with _recorded(failed, name):
            seconds = statistics.median(times[name][1:])
            single = sorted(one.call(worker.latencies, size.texts))
            memory, evaluations = one.call(worker.peak_memory), one.call(worker.evaluate)
            scales |= {own.head: own.scale for own in evaluations}
            found[name] = Measured(
                name=name,
                texts_per_second=size.texts / seconds,
                tokens_per_second=size.tokens / seconds,
                p50=statistics.median(single),
                p95=single[int(0.95 * (len(single) - 1))],
                memory=memory,
                metrics={own.head: {own.main_metric: float(own.metrics[own.main_metric])} for own in evaluations},
            )
    return found, scales


@contextlib.contextmanager
def _recorded(failed: dict[str, str], name: str) -> Iterator[None]:
    """Record why a candidate fails, and continue with the others."""
    try:
        yield
    except NlptasksError as error:
        failed[name] = error.problem
    except Exception as error:  # whatever the code of a backend raises
        failed[name] = first_line(error)


def _best(
    found: Mapping[str, Measured],
    baseline: str,
    precisions: Mapping[str, str],
    scales: Mapping[str, float],
    *,
    verified: bool,
) -> str:
    """Return the fastest backend whose metrics are those of the baseline.

    Args:
        found: measurements by candidate.
        baseline: name of the candidate that the others are compared with.
        precisions: precisions of the candidates that are backends.
        scales: scale of the main metric by head.
        verified: True if every head has gold answers; otherwise only the precision of the baseline counts as equal.
    """
    base, exact = found[baseline], precisions[baseline]
    kept = [
        one
        for name, one in found.items()
        if name == baseline
        or (name in precisions and (verified or precisions[name] == exact) and _keeps(one, base, scales))
    ]
    return max(kept, key=lambda one: one.texts_per_second).name


def _keeps(one: Measured, base: Measured, scales: Mapping[str, float]) -> bool:
    return all(
        not moves(points(value, one.metrics[head][name], scales[head]))
        for head, metrics in base.metrics.items()
        for name, value in metrics.items()
    )
