"""Messages of a chat as one text, by the chat template of the backbone's tokenizer. There is no default template."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import tokenizers
from jinja2 import TemplateError
from jinja2.utils import Namespace

from nlptasks import DataError, Row, Span, json_field, listing, quote

ROLES = ("system", "user", "assistant")
ANSWERS = "assistant"

_MAX_STEPS, _MAX_SIZE = 200_000, 2**24
"""Lines of a compiled template that one rendering may run, and the length of a string or list that it may make."""

Messages = Sequence[Mapping[str, str]]
"""Messages, each with its ``role`` and its ``content``."""


@dataclass(frozen=True)
class Template:
    """A tokenizer's chat template.

    Attributes:
        text: the template in Jinja's language.
        named: the special tokens that it may use, by name, such as ``bos_token``.
        special: the ids of all special tokens in the vocabulary.
    """

    text: str
    named: Mapping[str, str]
    special: Mapping[str, int]

    @classmethod
    def of(cls, chat: Mapping[str, str], vocabulary: tokenizers.Tokenizer) -> Template | None:
        """Return the template of a backbone from its info; None if its tokenizer has none."""
        if not chat:
            return None
        added = vocabulary.get_added_tokens_decoder().items()
        special = {token.content: number for number, token in added if token.special}
        return cls(chat["template"], {name: token for name, token in chat.items() if name != "template"}, special)

    def rendered(self, messages: Messages, *, where: str, answer_begins: bool = False) -> str:
        """Return the messages as one text.

        Args:
            messages: the messages.
            where: the row, for error messages.
            answer_begins: True to end with the beginning of an answer.

        Raises:
            DataError: the template refuses these messages.
        """
        from transformers.utils.chat_template_utils import render_jinja_template  # heavy

        try:
            with _bounded():
                [text], _ = render_jinja_template(
                    conversations=[list(messages)],
                    chat_template=self.text,
                    add_generation_prompt=answer_begins,
                    **self.named,
                )
        except (_RunawayError, MemoryError, OverflowError) as error:
            problem = f"has messages on which the chat template does not terminate ({error})"
            raise DataError(where, problem, "use a backbone with another chat template") from error
        except TemplateError as error:
            problem = f"has messages that the chat template refuses ({error})"
            raise DataError(where, problem, "order the roles as the model was trained on") from error
        result: str = text
        return result

    def answers(self, messages: Messages, *, where: str) -> tuple[str, tuple[Span, ...]]:
        """Return the messages as one text, and the code points in it of each answer with its end token.

        Raises:
            DataError: the template refuses these messages, or writes an answer differently from how it begins answers.
        """
        whole, spans = self.rendered(messages, where=where), []
        for number, message in enumerate(messages):
            if message["role"] != ANSWERS:
                continue
            before = self.rendered(messages[:number], where=where, answer_begins=True)
            after = self.rendered(messages[: number + 1], where=where)
            end = len(after) if whole.startswith(after) else self._end_of(whole, len(before), message["content"])
            if not whole.startswith(before) or end is None:
                problem = (
                    f"has an answer in message {number + 1} that the chat template writes differently from how it "
                    "begins answers"
                )
                raise DataError(
                    where, problem, "use a backbone with another template, or rows of prompt and completion"
                )
            spans.append((len(before), end))
        return whole, tuple(spans)

    def _end_of(self, text: str, begin: int, content: str) -> int | None:
        """Return the end of an answer that begins here, with the special token after it; None if the answer is not there.

        Some templates write an answer differently once more messages follow, for example without its thoughts.
        """
        content = content.strip()
        if not text.startswith(content, begin):
            return None
        after = begin + len(content)
        found = [(place, token) for token in self.special if (place := text.find(token, after)) >= 0]
        if not found:
            return None
        place, token = min(found)
        return place + len(token)

    def ends(self) -> list[int]:
        """Return the special token after an answer, if there is one."""
        probe = [{"role": "user", "content": "a"}, {"role": ANSWERS, "content": "b"}]
        try:
            text, spans = self.answers(probe, where="the chat template")
        except DataError:  # chats cannot be learned with it; texts can
            return []
        start, end = spans[-1]
        after = text[start:end].partition("b")[2]
        found = [(after.index(token), number) for token, number in self.special.items() if token in after]
        return [min(found)[1]] if found else []

    def check(self, messages: Messages, *, where: str, own: str = "") -> None:
        """Refuse messages that contain special tokens: they would steer the chat.

        Args:
            messages: the messages.
            where: the row, for error messages.
            own: a role whose messages are not checked: what the model itself has said.

        Raises:
            DataError: one does.
        """
        for number, message in enumerate(messages, start=1):
            found = [token for token in self.special if token in message["content"]]
            if found and message["role"] != own:
                problem = f"has {listing(found)} in message {number}, with which the chat template marks messages"
                raise DataError(where, problem, "remove it from the text")


class _RunawayError(Exception):
    """A template runs for too long, or makes too large a text."""


def _is_huge(value: object) -> bool:
    """Return True for a long string or list, and for a namespace that holds one."""
    if isinstance(value, str | list | tuple | dict):
        return len(value) > _MAX_SIZE
    return isinstance(value, Namespace) and any(map(_is_huge, value._Namespace__attrs.values()))


@contextmanager
def _bounded() -> Iterator[None]:
    """Stop templates that this thread renders in the block if they do not come to an end: they may loop for ever."""
    left = _MAX_STEPS

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename != "<template>":
            return None
        left -= 1
        if left < 0:
            raise _RunawayError(f"more than {_MAX_STEPS} steps")
        if any(map(_is_huge, frame.f_locals.values())):
            raise _RunawayError(f"values larger than {_MAX_SIZE}")
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def messages_of(row: Row) -> list[dict[str, str]]:
    """Return the field ``messages``: a list of objects with ``role`` and ``content``, or the same as JSON.

    Raises:
        DataError: it is something else.
    """
    value: Any = row.fields["messages"]
    if isinstance(value, str):
        value = json_field(row, "messages")
    fix = 'write [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'
    if not isinstance(value, list | tuple) or not value:
        raise DataError(row.where, f"messages is {quote(value)}, expected a list of messages", fix)
    for number, message in enumerate(value, start=1):
        is_message = isinstance(message, Mapping) and all(
            isinstance(message.get(key), str) for key in ("role", "content")
        )
        if not is_message:
            raise DataError(row.where, f"message {number} is {quote(message)}, expected role and content", fix)
        if message["role"] not in ROLES:
            problem = f"message {number} has the role {quote(message['role'])}"
            raise DataError(row.where, problem, f"use one of {listing(ROLES)}")
    return [{"role": message["role"], "content": message["content"]} for message in value]


def question_of(messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Return the messages without the last one if that is an answer."""
    return list(messages[:-1] if messages[-1]["role"] == ANSWERS else messages)
