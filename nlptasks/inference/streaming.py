"""Reading a text piece by piece while another thread generates it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator

from nlptasks.heads.base import Streamer


class _AbandonedError(Exception):
    """Nobody reads the pieces any more."""


def streamed(generate: Callable[[Streamer], object]) -> Iterator[str]:
    """Return the pieces that a function passes to a streamer, as they come.

    Args:
        generate: runs in a thread of its own; its error is raised where the pieces are read.
    """
    pieces: queue.Queue[str | BaseException | None] = queue.Queue()
    abandoned = threading.Event()

    def receive(piece: str) -> None:
        if abandoned.is_set():
            raise _AbandonedError
        pieces.put(piece)

    def run() -> None:
        try:
            generate(receive)
            pieces.put(None)
        except BaseException as error:
            pieces.put(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while (piece := pieces.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece
    finally:
        abandoned.set()  # the thread stops at its next piece
        thread.join()
