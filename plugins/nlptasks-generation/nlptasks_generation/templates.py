"""Messages of a chat as one text, by the template of the backbone's tokenizer: no template is ever made up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tokenizers
from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from nlptasks import DataError, Row, Span, json_field, listing, quote

ROLES = ("system", "user", "assistant")
ANSWERS = "assistant"

Messages = Sequence[Mapping[str, str]]
"""Each with its ``role`` and its ``content``."""


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
            if message["role"] != ANSWERS:
                continue
            before = self.rendered(messages[:number], where=where, answer_begins=True)
            behind = self.rendered(messages[: number + 1], where=where)
            end = len(behind) if whole.startswith(behind) else self._end_of(whole, len(before), message["content"])
            if not whole.startswith(before) or end is None:
                problem = f"has in message {number + 1} an answer that its chat template writes otherwise than it begins answers"
                raise DataError(
                    where, problem, "take a backbone with another template, or rows of prompt and completion"
                )
            spans.append((len(before), end))
        return whole, tuple(spans)

    def _end_of(self, text: str, begin: int, content: str) -> int | None:
        """Where an answer ends that begins here, the special token behind it included; None if it does not stand there.

        Some templates write an answer otherwise once more follows, such as without what was thought before it.
        """
        content = content.strip()
        if not text.startswith(content, begin):
            return None
        behind = begin + len(content)
        found = [(place, token) for token in self.special if (place := text.find(token, behind)) >= 0]
        if not found:
            return None
        place, token = min(found)
        return place + len(token)

    def ends(self) -> list[int]:
        """The special token that stands behind an answer, if there is one."""
        probe = [{"role": "user", "content": "a"}, {"role": ANSWERS, "content": "b"}]
        try:
            text, spans = self.answers(probe, where="the chat template")
        except DataError:  # chats cannot be learned with it; texts can
            return []
        start, end = spans[-1]
        behind = text[start:end].partition("b")[2]
        found = [(behind.index(token), number) for token, number in self.special.items() if token in behind]
        return [min(found)[1]] if found else []

    def check(self, messages: Messages, *, where: str, own: str = "") -> None:
        """Refuse messages that contain special tokens: they would steer the chat.

        Args:
            messages: the messages.
            where: of the row, for messages.
            own: a role whose messages are not looked at: what the model itself has said.

        Raises:
            DataError: one does.
        """
        for number, message in enumerate(messages, start=1):
            found = [token for token in self.special if token in message["content"]]
            if found and message["role"] != own:
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
    return list(messages[:-1] if messages[-1]["role"] == ANSWERS else messages)
