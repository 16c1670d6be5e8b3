"""Signals that ask a long run to stop: noted, so that it can end where nothing is lost."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, NoReturn

_ASKING = (signal.SIGINT, signal.SIGTERM)
_TERMINATED = 128 + signal.SIGTERM


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end the block by SystemExit with 143, so that what it has begun is cleared up; in the main thread."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(_TERMINATED)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)  # None where the handler is not Python's


class StopRequest:
    """While it is entered, the first SIGINT or SIGTERM is only noted; a second one acts as it always does.

    Args:
        patient: whether further ones are only noted, too. Launchers of several processes pass on what the processes have
            already got.

    Attributes:
        signal: the number of the signal that came, 0 before. In threads other than the main one no signal is noticed.
    """

    def __init__(self, *, patient: bool) -> None:
        self.signal = 0
        self._patient = patient
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _ASKING}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def is_made(self) -> bool:
        """Whether a signal came."""
        return self.signal != 0

    def obey(self) -> NoReturn:
        """End as the signal would have: by KeyboardInterrupt, or by SystemExit with 143 for SIGTERM."""
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(_TERMINATED)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        if not self._patient:
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None where the handler is not Python's
        self._before = {}
