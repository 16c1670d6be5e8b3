"""Handlers that delay SIGINT and SIGTERM until a long run can stop without losing work."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, NoReturn

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_TERMINATED = 128 + signal.SIGTERM


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Turn SIGTERM into SystemExit(143), so that the block cleans up. Only the main thread can handle signals."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(_TERMINATED)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)  # None for a handler that was not set from Python


class StopRequest:
    """Context manager that records the first SIGINT or SIGTERM instead of handling it. The second one acts as usual.

    Args:
        patient: True to record all signals: launchers send processes a signal that these have already received.

    Attributes:
        signal: number of the received signal, or 0. Outside the main thread none is received.
    """

    def __init__(self, *, patient: bool) -> None:
        self.signal = 0
        self._patient = patient
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._record) for number in _STOP_SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def is_made(self) -> bool:
        """Return True if a signal was received."""
        return self.signal != 0

    def obey(self) -> NoReturn:
        """Raise KeyboardInterrupt for SIGINT, and SystemExit(143) for SIGTERM."""
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(_TERMINATED)

    def _record(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        if not self._patient:
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # see terminable
        self._before = {}
