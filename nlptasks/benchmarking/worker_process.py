"""Starting worker processes and calling functions in them."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import ParamSpec, TypeVar

from nlptasks.benchmarking import worker
from nlptasks.errors import BackendError, NlptasksError

_EXIT_SECONDS = 10.0
"""Seconds after which a worker that does not end is killed."""

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class Worker:
    """A process that runs the functions of `nlptasks.benchmarking.worker`.

    Args:
        name: name of its candidate.
        executor: runs functions in the process.
        process: the process; None if it has ended already.
        log: file with the output of the process.
    """

    def __init__(
        self, name: str, executor: ProcessPoolExecutor, process: multiprocessing.process.BaseProcess | None, log: Path
    ) -> None:
        self._name, self._executor, self._process, self._log = name, executor, process, log

    def call(
        self, function: Callable[_Arguments, _Result], *args: _Arguments.args, **kwargs: _Arguments.kwargs
    ) -> _Result:
        """Call a function in the process.

        Raises:
            BackendError: the function raises an error of this library, or the process has died.
        """
        try:
            return self._run(function, *args, **kwargs)
        except BrokenProcessPool as error:
            raise BackendError(self._name, self._death(), "use another backend") from error
        except NlptasksError as error:
            raise BackendError(self._name, str(error), "use another backend") from error

    def _run(
        self, function: Callable[_Arguments, _Result], *args: _Arguments.args, **kwargs: _Arguments.kwargs
    ) -> _Result:
        return self._executor.submit(function, *args, **kwargs).result()

    def _death(self) -> str:
        """Return how the process ended, and the last line of its output."""
        self._executor.shutdown()  # waits until the exit code is known
        code = self._process.exitcode if self._process else None
        if code is None:
            end = "its process died"
        elif code < 0:
            end = f"its process was killed by {signal.Signals(-code).name}"
        else:
            end = f"its process ended with {code}"
        output = self._log.read_text("utf-8", "replace") if self._log.exists() else ""
        lines = [line.strip() for line in output.split("\n") if line.strip()]
        return ": ".join([end, *lines[-1:]])


@contextlib.contextmanager
def start_worker(name: str, log: Path) -> Iterator[Worker]:
    """Start a worker process, which ends with the block; it is killed if the block fails or the process does not end soon.

    Args:
        name: name of its candidate.
        log: a file for its output.
    """
    spawn = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(1, spawn, worker.prepare, (str(log),)) as executor:
        executor.submit(worker.peak_memory)  # starts the process
        process = next(iter(set(multiprocessing.active_children()) - others), None)
        patience = 0.0
        try:
            yield Worker(name, executor, process, log)
            patience = _EXIT_SECONDS
        finally:
            executor.shutdown(wait=False)
            if process is not None:
                process.join(patience)
                process.kill()
