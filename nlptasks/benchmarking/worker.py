"""Functions that run in a worker process, which has one candidate open."""

from __future__ import annotations

import multiprocessing
import os
import threading
from pathlib import Path

from nlptasks.benchmarking.candidates import Candidate, Runner, Workload, seconds
from nlptasks.errors import UsageError
from nlptasks.inference.scoring import Evaluation

_SINGLE = 100
"""The most texts that are run one at a time."""

_runner: Runner | None = None


def prepare(log: str) -> None:
    """Send the output of this process to a file, and end the process if its parent dies."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def open_candidate(candidate: Candidate, workload: Workload) -> None:
    """Open the candidate of this process."""
    global _runner
    _runner = candidate.open(workload)


def throughput() -> float:
    """Return the seconds for all texts."""
    return seconds(lambda: _opened().run(0, None))


def latencies(texts: int) -> list[float]:
    """Return the seconds for each text, run one at a time, for at most 100 texts."""
    return [_latency(index) for index in range(min(_SINGLE, texts))]


def evaluate() -> list[Evaluation]:
    """Return the metrics of the heads that have gold answers."""
    return _opened().evaluate()


def peak_memory() -> float | None:
    """Return the peak memory of this process in MiB, or None if the system does not tell."""
    status = Path("/proc/self/status")  # `resource` may report the parent's memory there
    if not status.exists():
        return None
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return int(lines["VmHWM"].split()[0]) / 1024


def _latency(index: int) -> float:
    return seconds(lambda: _opened().run(index, index + 1))


def _opened() -> Runner:
    if _runner is None:
        raise UsageError("the worker", "has no candidate", "open one first")
    return _runner
