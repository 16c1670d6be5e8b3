"""Streamed texts, and chats that remember the messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nlptasks import GeneratedText, Row, UsageError, listing
from nlptasks.pipeline import Pipeline
from nlptasks_generation.head import GenerationHead


def stream(pipe: Pipeline, prompt: str | Mapping[str, Any]) -> Iterator[str]:
    """Return the pieces of a continuation while it is generated, in whole characters.

    Closing the iterator stops the generation.

    Args:
        pipe: a pipeline with a head that continues texts.
        prompt: a text, or a row with ``prompt`` or ``messages``.

    Raises:
        UsageError: there is no such head or several, or several answers or beams are asked for.
        DataError: the head cannot read the row.
    """
    return pipe.stream_text(prompt, head=_head_name(pipe))


class Chat:
    """A chat with a model.

    Args:
        pipe: a pipeline with a head that continues texts, on a backbone whose tokenizer has a chat template.
        system: the system message; empty for none.

    Attributes:
        messages: all messages so far, each with ``role`` and ``content``.

    Raises:
        UsageError: the pipeline has no such head.
    """

    def __init__(self, pipe: Pipeline, *, system: str = "") -> None:
        self._pipe = pipe
        self._name = _head_name(pipe)
        self.messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []

    def __call__(self, text: str) -> str:
        """Return the answer to a message.

        Raises:
            DataError: the tokenizer has no chat template, or it refuses the messages; then nothing is remembered.
        """
        asked = self._asked(text)
        [found] = self._pipe.predict([Row({"messages": asked}, "the chat")], heads=[self._name])
        best = found.results[self._name]
        answer: GeneratedText = best[0] if isinstance(best, list) else best
        self._remember(asked, answer.text)
        return answer.text

    def stream(self, text: str) -> Iterator[str]:
        """Return the answer in pieces while it is generated; it is remembered once all pieces were read."""
        asked = self._asked(text)
        pieces = []
        for piece in stream(self._pipe, {"messages": asked}):
            pieces.append(piece)
            yield piece
        self._remember(asked, "".join(pieces))

    def _asked(self, text: str) -> list[dict[str, str]]:
        return [*self.messages, {"role": "user", "content": text}]

    def _remember(self, asked: list[dict[str, str]], answer: str) -> None:
        self.messages = [*asked, {"role": "assistant", "content": answer}]


def _head_name(pipe: Pipeline) -> str:
    """Return the name of the pipeline's head that continues texts.

    Raises:
        UsageError: there is none, or several.
    """
    found = [name for name, head in pipe.heads.items() if isinstance(head, GenerationHead)]
    if len(found) != 1:
        problem = f"has {len(found)} heads that continue texts, of {listing(pipe.heads)}"
        raise UsageError("the pipeline", problem, "open it with one: pipeline(NAME, model=...)")
    return found[0]
