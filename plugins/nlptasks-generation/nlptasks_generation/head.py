"""Text generation and dialogue: a text that goes on, on backbones that read only to the left (GPT-2, Llama, Qwen ...).

Rows are ``text`` (all of it is learned), ``prompt`` and ``completion`` (the completion is learned), or ``messages`` of a chat,
each with its role and content (the answers are learned), where the backbone's tokenizer has a chat template.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from nlptasks import (
    SPECIAL,
    TABLES,
    BackboneInfo,
    CausalConfig,
    CausalHead,
    DataError,
    Ints,
    OnError,
    Outputs,
    Row,
    Source,
    Span,
    Text,
    Window,
    hypotheses_in,
    is_blank,
    parse_options,
    read_text,
    setting,
    text_field,
)
from nlptasks_generation.templates import ANSWERS, Template, messages_of, question_of


@dataclass(frozen=True)
class Likelihood:
    """How likely a text was.

    Attributes:
        log_probability: the sum of the logarithms of its tokens' probabilities, in nats; 0 for a text without tokens.
        tokens: tokens that count.
    """

    log_probability: float
    tokens: int


@dataclass(frozen=True)
class GenerationConfig(CausalConfig):
    """Options of a head, and what its backbone decided."""

    learn: str = setting(
        "answers",
        "what is learned of a chat or of a prompt and its completion: answers (these and completions alone) or all",
        choices=("answers", "all"),
    )


@dataclass(frozen=True)
class Passage:
    """A text to learn from, or to go on from.

    Attributes:
        text: as the backbone reads it.
        markup: whether a template has put special tokens into it.
        learned: code points of what is learned; None for a prompt.
    """

    text: str
    markup: bool = False
    learned: tuple[Span, ...] | None = None


def _read_texts(path: Path, on_error: OnError) -> Iterator[Row]:
    """A text a line; empty lines, which stand between paragraphs, are no texts."""
    yield from (row for row in read_text(path, on_error) if not is_blank(row.fields["text"]))


def _has(row: Row, name: str) -> bool:
    """Whether a row says something here: tables have all columns in every row."""
    return row.fields.get(name) not in (None, "")


class GenerationHead(CausalHead):
    """Goes on from a text, or answers in a chat."""

    contract = 1
    Config = GenerationConfig
    config: GenerationConfig
    main_metric = "likelihood"
    fields: ClassVar = ("text", "prompt", "completion", "messages")
    gold_fields: ClassVar = ("completion",)
    sample = "sample"
    formats: ClassVar = {**TABLES, ".txt": _read_texts}
    results = (Text, Likelihood)
    assigns = ("doc._.continuation",)

    def __init__(self, config: GenerationConfig, *, backbone: BackboneInfo) -> None:
        super().__init__(config, backbone=backbone)
        self._template = Template.of(backbone.chat, self.vocabulary)

    @classmethod
    def configure(cls, rows: Sequence[Row], given: Mapping[str, Any]) -> GenerationConfig:
        return GenerationConfig(**parse_options(GenerationConfig, given, where="generation"))

    @classmethod
    def for_backbone(cls, config: GenerationConfig, rows: Sequence[Row], backbone: BackboneInfo) -> GenerationConfig:
        """The tokens that end a text are the backbone's, and what its chat template writes behind an answer."""
        found: GenerationConfig = super().for_backbone(config, rows, backbone)
        template = Template.of(backbone.chat, backbone.vocabulary())
        more = template.ends() if template else []
        return replace(found, end=tuple(dict.fromkeys([*found.end, *more])))

    def read(self, row: Row) -> Passage:
        """A prompt: what stands in the row, without the answer that may follow."""
        if _has(row, "messages"):
            template = self._chats(row)
            asked = question_of(messages_of(row))
            template.check(asked, where=row.where, own=ANSWERS)
            return Passage(template.rendered(asked, where=row.where, answer_begins=True), markup=True)
        return Passage(text_field(row, "prompt" if _has(row, "prompt") else "text"))

    def read_gold_row(self, row: Row) -> Passage:
        passage = self._gold(row)
        if is_blank(passage.text):
            raise DataError(row.where, "has an empty text", "remove the row")
        if not passage.learned:
            raise DataError(row.where, "has no answer to learn", "add one, or --set HEAD.learn=all")
        return passage

    def _gold(self, row: Row) -> Passage:
        everything = self.config.learn == "all"
        if _has(row, "messages"):
            template, messages = self._chats(row), messages_of(row)
            template.check(messages, where=row.where)
            text, answers = template.answers(messages, where=row.where)
            return Passage(text, markup=True, learned=((0, len(text)),) if everything else answers)
        if not _has(row, "prompt"):
            text = text_field(row)
            return Passage(text, learned=((0, len(text)),))
        prompt, completion = text_field(row, "prompt"), text_field(row, "completion")
        begin = 0 if everything or not completion else len(prompt)
        return Passage(prompt + completion, learned=((begin, len(prompt + completion)),) if completion else ())

    def _chats(self, row: Row) -> Template:
        if self._template is None:
            source = self.backbone_info.source
            problem = f"has messages, and the tokenizer of {source} has no chat template"
            raise DataError(row.where, problem, "take a backbone made for chats, or write prompt and completion")
        return self._template

    def gold(self, example: Passage) -> Hashable | None:
        return None if example.learned is None else (example.text, example.learned)

    def sources(self, example: Passage) -> list[Source]:
        if not example.text:
            return []
        if example.learned is None:
            return [Source(example.text, markup=example.markup, continued=True, reserved=self.reserved)]
        return [Source(example.text, markup=example.markup, overlaps=False)]

    def features(self, example: Passage, window: Window) -> dict[str, Ints]:
        return {"learned": self._learned(example, window)}

    def _learned(self, example: Passage, window: Window) -> Ints:
        """Whether what follows each token [S] is learned: the end behind the text, too, where no template has written it."""
        starts, ends = window.offsets.T
        spans = example.learned or ()
        own = np.any([(ends > start) & (starts < end) for start, end in spans], axis=0)  # [S]
        own = np.where(window.parts == SPECIAL, not example.markup, own)
        learned = self.learned(window)
        learned[:-1] &= own[1:]
        learned[-1] &= not example.markup
        return learned

    def decode(self, example: Passage, windows: Sequence[Window], outputs: Sequence[Outputs]) -> Any:
        if example.learned is None:
            return self._written(windows, outputs)
        counted = [self._learned(example, window) for window in windows]
        total = sum(
            float(output["log_probs"][learned == 1].sum(dtype=np.float64))
            for output, learned in zip(outputs, counted, strict=True)
        )
        return Likelihood(total, int(sum(learned.sum() for learned in counted)))

    def _written(self, windows: Sequence[Window], outputs: Sequence[Outputs]) -> Text | list[Text]:
        """What was written: the best text, or as many as are asked for."""
        if not windows:
            nothing = Text("", None, False)
            return nothing if self.config.num_return_sequences == 1 else [nothing]
        [window], [output] = windows, outputs
        texts = [
            Text(self.vocabulary.decode(list(one.tokens)), one.mean_probability, not (window.opens and one.ended))
            for one in hypotheses_in(output)
        ]
        return texts[0] if self.config.num_return_sequences == 1 else texts

    def metrics(self, examples: Sequence[Passage], results: Sequence[Likelihood]) -> dict[str, float]:
        """``likelihood``: the geometric mean of the tokens' probabilities; ``perplexity``: its inverse."""
        tokens = max(1, sum(result.tokens for result in results))
        loss = -sum(result.log_probability for result in results) / tokens
        return {"likelihood": math.exp(-loss), "perplexity": math.exp(min(loss, 700.0)), "nats_per_token": loss}

    def show(self, example: Passage, result: Any) -> list[tuple[str, str]]:
        if isinstance(result, Likelihood):
            return [(f"{example.text}  ({result.log_probability:.2f} nats for {result.tokens} tokens)", "")]
        texts = result if isinstance(result, list) else [result]
        return [
            piece
            for one in texts
            for piece in ((example.text, ""), (one.text, "cut off" if one.truncated else "written"))
        ]

    def annotate(self, doc: Any, result: Any, name: str) -> None:
        """``doc._.continuation`` has the best text that goes on from the document."""
        if doc._.continuation is None:
            doc._.continuation = (result[0] if isinstance(result, list) else result).text
