"""Texts as they are written, and chats that remember what was said."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from queue import Queue
from typing import Any

from nlptasks import Text, UsageError, listing
from nlptasks.pipeline import Pipeline
from nlptasks_generation.head import GenerationHead

_ONE_AT_A_TIME = threading.Lock()
"""A head has one listener."""


def stream(pipe: Pipeline, prompt: str | Mapping[str, Any]) -> Iterator[str]:
    """The pieces of what is written, as soon as they are, in whole characters.

    Who stops listening stops the writing.

    Args:
        pipe: a pipeline with a head that goes on from texts.
        prompt: a text, or a row with ``prompt`` or ``messages``.

    Raises:
        UsageError: there is no such head, or several, or several answers or beams are asked for.
    """
    _, head = _head_of(pipe)
    pieces: Queue[str | BaseException | None] = Queue()
    is_over = threading.Event()

    def hear(piece: str) -> None:
        if threading.current_thread() is not writer:  # others may ask the same head meanwhile
            return
        if is_over.is_set():
            raise _NobodyListens
        pieces.put(piece)

    def write() -> None:
        try:
            with _ONE_AT_A_TIME:
                head.listener = hear
                try:
                    pipe(prompt)
                finally:
                    head.listener = None
            pieces.put(None)
        except _NobodyListens:
            pass
        except BaseException as error:  # it is raised where the pieces are taken
            pieces.put(error)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    try:
        while (piece := pieces.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece
    finally:
        is_over.set()
        writer.join()


class _NobodyListens(Exception):  # noqa: N818 (it is a signal)
    """The pieces are not taken any more."""


class Chat:
    """A chat with a model.

    Args:
        pipe: a pipeline with a head that goes on from texts, on a backbone whose tokenizer has a chat template.
        system: what the model is told first; empty for nothing.

    Attributes:
        messages: what was said so far, the last answer included, each with ``role`` and ``content``.

    Raises:
        UsageError: the pipeline has no such head.
    """

    def __init__(self, pipe: Pipeline, *, system: str = "") -> None:
        self._pipe = pipe
        self._name, _ = _head_of(pipe)
        self.messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []

    def __call__(self, text: str) -> str:
        """The answer to what is said.

        Raises:
            DataError: the tokenizer has no chat template, or it refuses the messages; nothing was said then.
        """
        asked = self._asked(text)
        found = self._pipe({"messages": asked})
        best = found[self._name] if isinstance(found, dict) else found
        answer: Text = best[0] if isinstance(best, list) else best
        self._answered(asked, answer.text)
        return answer.text

    def stream(self, text: str) -> Iterator[str]:
        """The same in pieces, as they are written; it is remembered when all of it was taken."""
        asked = self._asked(text)
        pieces = []
        for piece in stream(self._pipe, {"messages": asked}):
            pieces.append(piece)
            yield piece
        self._answered(asked, "".join(pieces))

    def _asked(self, text: str) -> list[dict[str, str]]:
        return [*self.messages, {"role": "user", "content": text}]

    def _answered(self, asked: list[dict[str, str]], answer: str) -> None:
        self.messages = [*asked, {"role": "assistant", "content": answer}]


def _head_of(pipe: Pipeline) -> tuple[str, GenerationHead]:
    """The pipeline's head that goes on from texts, and its name.

    Raises:
        UsageError: there is none.
    """
    found = [(name, head) for name, head in pipe.heads.items() if isinstance(head, GenerationHead)]
    if len(found) != 1:
        problem = f"has {len(found)} heads that go on from texts, of {listing(pipe.heads)}"
        raise UsageError("the pipeline", problem, "open it with one: pipeline(NAME, model=...)")
    return found[0]
