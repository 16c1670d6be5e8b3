"""Text generation and dialogue: a decoder (GPT-2, Llama, Qwen ...) continues a text.

Rows are ``text`` (all of it is learned), ``prompt`` and ``completion`` (the completion is learned), or ``messages`` of a chat,
each with its role and content (the answers are learned), if the backbone's tokenizer has a chat template.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from nlptasks import (
    DECODER,
    SPECIAL,
    TABLES,
    BackboneInfo,
    CausalConfig,
    CausalFormat,
    CausalHead,
    Counts,
    DataError,
    End,
    GeneratedText,
    Ints,
    Metrics,
    ModelInput,
    OnError,
    Outputs,
    Parts,
    Presenter,
    Result,
    Row,
    Schema,
    SpacyWriter,
    Span,
    Window,
    hypotheses_in,
    is_blank,
    option,
    read_text,
    text_field,
)
from nlptasks_generation.templates import ANSWERS, Template, messages_of, question_of

_LOG_PROBABILITY, _TOKENS = "log_probability", "tokens"


@dataclass(frozen=True)
class Likelihood(Result):
    """How likely a text is.

    Attributes:
        log_probability: sum of the log-probabilities of its tokens, in nats; 0 for a text without tokens.
        tokens: number of tokens that count.
    """

    log_probability: float
    tokens: int


Generated = GeneratedText | list[GeneratedText] | Likelihood
"""The best continuation of a prompt, the best ones if several were asked for, or the likelihood of a gold text."""


@dataclass(frozen=True)
class GenerationConfig(CausalConfig):
    """Options of a head, and what its backbone decided."""

    learn: str = option(
        "answers",
        "what is learned from a chat, or from a prompt and its completion: only answers and completions (answers), or all",
        choices=("answers", "all"),
    )


@dataclass(frozen=True)
class Passage:
    """A text to learn, to score or to continue.

    Attributes:
        text: the text that the backbone reads.
        markup: True if a template has written special tokens into it.
        learned: code points of what is learned; None for a prompt.
    """

    text: str
    markup: bool = False
    learned: tuple[Span, ...] | None = None


class GenerationFormat(CausalFormat[GenerationConfig]):
    """Checkpoints of decoders; their chat template may have an end token of its own."""

    def to_config(self, backbone: BackboneInfo, options: Mapping[str, Any]) -> GenerationConfig:
        return _with_template_end(super().to_config(backbone, options), backbone)


class ContinuationWriter(SpacyWriter[Generated]):
    """``doc._.continuation`` gets the best text that continues the document, unless an earlier head has set it."""

    assigns = ("doc._.continuation",)

    def write(self, doc: Any, result: Generated, name: str) -> None:
        best = result[0] if isinstance(result, list) else result
        if doc._.continuation is None and isinstance(best, GeneratedText):
            doc._.continuation = best.text


class GenerationPresenter(Presenter[Passage, Generated]):
    """Shows a prompt with its continuations."""

    def render(self, example: Passage, result: Generated) -> list[tuple[str, str]]:
        if isinstance(result, Likelihood):
            return [(f"{example.text}  ({result.log_probability:.2f} nats for {result.tokens} tokens)", "")]
        texts = result if isinstance(result, list) else [result]
        return [
            piece
            for one in texts
            for piece in ((example.text, ""), (one.text, "cut off" if one.truncated else "written"))
        ]


def _read_texts(path: Path, on_error: OnError) -> Iterator[Row]:
    """Read one text a line; empty lines separate paragraphs."""
    yield from (row for row in read_text(path, on_error) if not is_blank(row.fields["text"]))


class GenerationHead(CausalHead[GenerationConfig, Passage, Generated]):
    """Continues a text, or answers in a chat."""

    Config = GenerationConfig
    schema = Schema(
        contract=2,
        fields=("text", "prompt", "completion", "messages"),
        gold=("completion",),
        results=(GeneratedText, Likelihood),
        formats={**TABLES, ".txt": _read_texts},
        backbones=(DECODER,),
    )
    hugging_face: ClassVar = GenerationFormat(GenerationConfig)
    spacy: ClassVar = ContinuationWriter()

    def __init__(self, config: GenerationConfig, backbone: BackboneInfo) -> None:
        super().__init__(config, backbone)
        self._source = backbone.source
        self._template = Template.of(backbone.chat, self.vocabulary)

    @classmethod
    def configure(cls, rows: Sequence[Row], options: GenerationConfig, backbone: BackboneInfo) -> GenerationConfig:
        return _with_template_end(super().configure(rows, options, backbone), backbone)

    def read(self, row: Row) -> Passage:
        """Return a text to learn, or a prompt if only a prediction is wanted: then a last answer in ``messages`` is ignored."""
        return self._gold(row) if row.gold else self._prompt(row)

    def _prompt(self, row: Row) -> Passage:
        if _has(row, "messages"):
            template = self._chat_template(row)
            asked = question_of(messages_of(row))
            template.check(asked, where=row.where, own=ANSWERS)
            return Passage(template.rendered(asked, where=row.where, answer_begins=True), markup=True)
        return Passage(text_field(row, "prompt" if _has(row, "prompt") else "text"))

    def _gold(self, row: Row) -> Passage:
        passage = self._learned_passage(row)
        if is_blank(passage.text):
            raise DataError(row.where, "has an empty text", "remove the row")
        if not passage.learned:
            raise DataError(
                row.where, "has no answer to learn", 'add one, or learn everything: `options={"learn": "all"}`'
            )
        return passage

    def _learned_passage(self, row: Row) -> Passage:
        everything = self.config.learn == "all"
        if _has(row, "messages"):
            template, messages = self._chat_template(row), messages_of(row)
            template.check(messages, where=row.where)
            text, answers = template.answers(messages, where=row.where)
            return Passage(text, markup=True, learned=((0, len(text)),) if everything else answers)
        if not _has(row, "prompt"):
            text = text_field(row)
            return Passage(text, learned=((0, len(text)),))
        prompt, completion = text_field(row, "prompt"), text_field(row, "completion")
        begin = 0 if everything or not completion else len(prompt)
        return Passage(prompt + completion, learned=((begin, len(prompt + completion)),) if completion else ())

    def _chat_template(self, row: Row) -> Template:
        if self._template is None:
            problem = f"has messages, and the tokenizer of {self._source} has no chat template"
            raise DataError(row.where, problem, "use a backbone made for chats, or write prompt and completion")
        return self._template

    def gold(self, example: Passage) -> Hashable | None:
        return None if example.learned is None else (example.text, example.learned)

    def inputs(self, example: Passage) -> list[ModelInput]:
        if not example.text:
            return []
        cut = End(reserve=self.reserved) if example.learned is None else Parts()
        return [ModelInput((example.text,), cut=cut, markup=example.markup)]

    def targets(self, example: Passage, window: Window) -> dict[str, Ints]:
        return {"learned": self._learned(example, window)}

    def _learned(self, example: Passage, window: Window) -> Ints:
        """Return 1 for each token [S] whose next token is learned, for the last one the end token unless a template wrote it."""
        starts, ends = window.offsets.T
        spans = example.learned or ()
        own = np.any([(ends > start) & (starts < end) for start, end in spans], axis=0)  # [S]
        own = np.where(window.parts == SPECIAL, not example.markup, own)
        learned = self.learned(window)
        learned[:-1] &= own[1:]
        learned[-1] &= not example.markup
        return learned

    def decode(self, example: Passage, windows: Sequence[Window], outputs: Sequence[Outputs]) -> Generated:
        if example.learned is None:
            return self._continuations(windows, outputs)
        counted = [self._learned(example, window) for window in windows]
        total = sum(
            float(output["log_probs"][learned == 1].sum(dtype=np.float64))
            for output, learned in zip(outputs, counted, strict=True)
        )
        return Likelihood(total, int(sum(learned.sum() for learned in counted)))

    def _continuations(
        self, windows: Sequence[Window], outputs: Sequence[Outputs]
    ) -> GeneratedText | list[GeneratedText]:
        several = self.config.num_return_sequences > 1
        if not windows:
            nothing = GeneratedText("", None, False)
            return [nothing] if several else nothing
        [window], [output] = windows, outputs
        texts = [
            GeneratedText(
                self.vocabulary.decode(list(one.tokens)), one.mean_probability, not (window.opens and one.ended)
            )
            for one in hypotheses_in(output)
        ]
        return texts if several else texts[0]

    def count(self, example: Passage, result: Generated) -> Counts:
        assert isinstance(result, Likelihood)  # of a gold text
        return Counts({_LOG_PROBABILITY: result.log_probability, _TOKENS: float(result.tokens)})

    def metrics(self, counts: Counts) -> Metrics:
        """Return ``likelihood``, the geometric mean of the tokens' probabilities, and ``perplexity``, its inverse."""
        loss = -counts.sums[_LOG_PROBABILITY] / max(1.0, counts.sums[_TOKENS])
        values = {"likelihood": math.exp(-loss), "perplexity": math.exp(min(loss, 700.0)), "nats_per_token": loss}
        return Metrics(values, main="likelihood")

    @property
    def presenter(self) -> GenerationPresenter:
        return GenerationPresenter()


def _has(row: Row, name: str) -> bool:
    """Return True if a field has a value: rows of a table have all columns."""
    return row.fields.get(name) not in (None, "")


def _with_template_end(config: GenerationConfig, backbone: BackboneInfo) -> GenerationConfig:
    """Return the config with the end token that the chat template writes after an answer."""
    template = Template.of(backbone.chat, backbone.vocabulary())
    more = template.ends() if template else []
    return replace(config, end=tuple(dict.fromkeys([*config.end, *more])))
