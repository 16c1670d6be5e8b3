"""Messages of a chat as one text, by the template of the backbone's tokenizer: no template is ever made up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tokenizers
from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from nlptasks import DataError, ModelError, Row, json_field, listing, quote

ROLES = ("system", "user", "assistant")
_ANSWERS = "assistant"

Messages = Sequence[Mapping[str, str]]
"""Each with its ``role`` and its ``content``."""

Span = tuple[int, int]


@dataclass(frozen=True)
class Template:
    """A tokenizer's chat template.

    Attributes:
        text: in Jinja's language.
        named: the special tokens that it may name, such as ``bos_token``.
        special: all special tokens of the vocabulary, and their ids.
    """

    text: str
    named: Mapping[str, str]
    special: Mapping[str, int]

    @classmethod
    def of(cls, chat: Mapping[str, str], vocabulary: tokenizers.Tokenizer) -> Template | None:
        """The template of a backbone, as its info has it; None if its tokenizer has none."""
        if not chat:
            return None
        added = vocabulary.get_added_tokens_decoder().items()
        special = {token.content: number for number, token in added if token.special}
        return cls(chat["template"], {name: token for name, token in chat.items() if name != "template"}, special)

    def rendered(self, messages: Messages, *, where: str, answer_begins: bool = False) -> str:
        """The messages as one text.

        Args:
            messages: the messages.
            where: of the row, for messages.
            answer_begins: whether the beginning of an answer stands at the end.

        Raises:
            DataError: the template refuses these messages.
        """
        try:
            [text], _ = render_jinja_template(
                conversations=[list(messages)],
                chat_template=self.text,
                add_generation_prompt=answer_begins,
                **self.named,
            )
        except TemplateError as error:
            problem = f"has messages that the chat template refuses ({error})"
            raise DataError(where, problem, "order the roles as the model was trained on") from error
        result: str = text
        return result

    def answers(self, messages: Messages, *, where: str) -> tuple[str, tuple[Span, ...]]:
        """The messages as one text, and the code points in it of each answer, its end included.

        Raises:
            DataError: the template refuses these messages, or changes what stands before an answer once more follows.
        """
        whole, spans = self.rendered(messages, where=where), []
        for number, message in enumerate(messages):
            if message["role"] != _ANSWERS:
                continue
            before = self.rendered(messages[:number], where=where, answer_begins=True)
            behind = self.rendered(messages[: number + 1], where=where)
            if whole.startswith(before) and whole.startswith(behind):
                spans.append((len(before), len(behind)))
            elif number == len(messages) - 1:
                problem = "has a last answer that the chat template does not write behind its own beginning of answers"
                raise DataError(where, problem, "take a backbone with another template")
        return whole, tuple(spans)

    def ends(self) -> list[int]:
        """The special token that stands behind an answer, if there is one."""
        probe = [{"role": "user", "content": "a"}, {"role": _ANSWERS, "content": "b"}]
        try:
            text, spans = self.answers(probe, where="the chat template")
        except DataError as error:
            raise ModelError(error.where, error.problem, error.fix) from error
        start, end = spans[-1]
        behind = text[start:end].partition("b")[2]
        found = [(behind.index(token), number) for token, number in self.special.items() if token in behind]
        return [min(found)[1]] if found else []

    def check(self, messages: Messages, *, where: str) -> None:
        """Refuse messages that contain special tokens: they would steer the chat.

        Raises:
            DataError: one does.
        """
        for number, message in enumerate(messages, start=1):
            found = [token for token in self.special if token in message["content"]]
            if found:
                problem = f"has {listing(found)} in message {number}, with which the chat template marks messages"
                raise DataError(where, problem, "remove it from the text")


def messages_of(row: Row) -> list[dict[str, str]]:
    """The field ``messages``: a list of objects with ``role`` and ``content``, as such or as JSON.

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
            raise DataError(row.where, problem, f"take one of {listing(ROLES)}")
    return [{"role": message["role"], "content": message["content"]} for message in value]


def question_of(messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """The messages up to the last that is no answer: what is to be answered."""
    return list(messages[:-1] if messages[-1]["role"] == _ANSWERS else messages)
