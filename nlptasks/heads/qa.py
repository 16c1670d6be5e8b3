"""Extractive question answering: the span of a context that answers a question, or no answer.

Rows are ``question`` and ``context`` with ``answers``, as in SQuAD, nested (JSON) or flat (JSON Lines, CSV). A context that is
too long is read in overlapping windows. The score of a span is from the window where it is farthest from an edge. All scores are
relative to the score of the first special token, which stands for "no answer here". So windows can be compared, and the spans of
all windows share one distribution.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from nlptasks.backbones.info import BackboneInfo
from nlptasks.config import ABOVE_0, AT_LEAST_1, check_values, derived, option
from nlptasks.data.fields import answers_field, text_field
from nlptasks.data.readers import TABLES, read_json_file
from nlptasks.errors import DataError, each, quote
from nlptasks.heads.answer_spans import AnswerSpans, answer_tokens, is_whole, tokens_of
from nlptasks.heads.base import Calibration, Head, HuggingFaceFormat, Presenter, Schema
from nlptasks.metrics.base import Counts, Metrics
from nlptasks.metrics.calibration import TEMPERATURE_DOC, SpanLikelihood, log_total
from nlptasks.metrics.labelling import answer_counts, answer_f1, answer_scores, exact_match
from nlptasks.text.words import is_blank, widened
from nlptasks.types import (
    IGNORED,
    Floats,
    HeadOutputs,
    Ints,
    ModelInput,
    OnError,
    Outputs,
    Result,
    Row,
    Span,
    Window,
    refuse,
)

_POSSIBLE, _GOLD = 0, 1
"""Targets of tokens: an answer may start or end here, and the gold answer does."""


@dataclass(frozen=True)
class Answer(Result):
    """An answer: ``context[start:end]``.

    Attributes:
        text: its characters; empty if the context has no answer.
        start: first code point; 0 if there is no answer.
        end: code point after the last; 0 if there is no answer.
        score: probability that this is the answer, in 0..1; None for a context without tokens.
    """

    text: str
    start: int
    end: int
    score: float | None


QaResult = Answer | list[Answer]
"""The best answer, or a list if several were asked for."""


@dataclass(frozen=True)
class QaConfig:
    """Options of a head, and what its training data decided."""

    no_answer: bool | str = option(
        "auto",
        "allow the result that there is no answer: auto if training rows had no answer",
        choices=("auto",),
        at_run=True,
    )
    top_k: int = option(
        1, "number of answers, the best that do not overlap; above 1 they are a list", within=AT_LEAST_1, at_run=True
    )
    max_answer_tokens: int = option(30, "longest answer, in tokens of the backbone", within=AT_LEAST_1, at_run=True)
    unanswerable: bool = derived(False, "true if training rows had no answer")
    temperature: float = derived(1.0, TEMPERATURE_DOC, within=ABOVE_0)
    null_threshold: float = derived(0.0, "log-odds of no answer against the best span above which there is no answer")

    def __post_init__(self) -> None:
        check_values(self)

    @property
    def may_be_none(self) -> bool:
        """True if no answer is a result."""
        return self.unanswerable if self.no_answer == "auto" else self.no_answer is True


@dataclass(frozen=True)
class QaExample:
    """A question and a context.

    Attributes:
        question: the question.
        context: the context.
        gold: code points of each gold answer; empty if there is no answer, None if there is no gold answer.
    """

    question: str
    context: str
    gold: tuple[Span, ...] | None

    @property
    def answers(self) -> list[str]:
        """Texts of the gold answers."""
        return [self.context[start:end] for start, end in self.gold or ()]


def read_squad(path: Path, on_error: OnError = refuse) -> Iterator[Row]:
    """Read a SQuAD file (v1.1, v2.0), or one array of flat rows."""
    content = read_json_file(path)
    articles = content.get("data") if isinstance(content, dict) else content
    if not isinstance(articles, list):
        raise DataError(str(path), f"has {quote(articles)} as data, expected a list", "use a SQuAD file, or JSON Lines")
    for number, article in enumerate(articles):
        yield from _rows_of(article, f"{path}: data[{number}]", on_error)


def _rows_of(article: Any, where: str, on_error: OnError) -> Iterator[Row]:
    if isinstance(article, dict) and "question" in article:
        yield Row(article, where)
        return
    try:
        for at, paragraph in _members(article, "paragraphs", where):
            for place, question in _members(paragraph, "qas", at):
                yield Row({"context": paragraph.get("context"), **question}, place)
    except DataError as error:
        on_error(error)


def _members(record: Any, name: str, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects in a list of a record, each with its place."""
    items = record.get(name) if isinstance(record, dict) else None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise DataError(where, f"has {quote(items)} as {name}, expected a list of objects", "use a SQuAD file")
    yield from ((f"{where}.{name}[{index}]", item) for index, item in enumerate(items))


class QaFormat(HuggingFaceFormat[QaConfig]):
    """Checkpoints that extract answers; they store no labels."""

    def to_config(self, backbone: BackboneInfo, options: Mapping[str, Any]) -> QaConfig:
        return QaConfig(**options)

    def to_checkpoint(self, config: QaConfig, backbone: BackboneInfo) -> tuple[dict[str, Any], list[str]]:
        lost = ["the threshold of no answer: other libraries compare its score with that of the best answer"]
        return {}, lost if config.may_be_none else []


class QaPresenter(Presenter[QaExample, QaResult]):
    """Shows the question with its answers."""

    def example_row(self) -> dict[str, str]:
        return {"question": "Who wrote it?", "context": "Ada wrote it."}

    def render(self, example: QaExample, result: QaResult) -> list[tuple[str, str]]:
        answers = result if isinstance(result, list) else [result]
        found = (((" ", ""), (one.text or "no answer", f"{one.score or 0:.2f}")) for one in answers)
        return [(example.question, ""), *itertools.chain.from_iterable(found)]


class QaCalibration(Calibration[QaExample, QaResult]):
    """Calibrates the probabilities of answers, with all spans of a context and no answer in one distribution."""

    def __init__(self, config: QaConfig) -> None:
        self._config = config

    def likelihood(self, outputs: Iterable[HeadOutputs[QaExample]]) -> SpanLikelihood:
        candidates, right = [], []
        for one in outputs:
            spans, gold = _spans(one.example, one.windows, one.outputs, self._config), one.example.gold or ()
            places = [place for place in map(spans.index, gold) if place and np.isfinite(spans.logits[place])]
            if places or (self._config.may_be_none and not gold):
                candidates.append(spans.logits)
                right.append(np.array([spans.logits[place] for place in places] or [0.0], np.float32))
        return SpanLikelihood(candidates, right, none_allowed=self._config.may_be_none)

    def thresholds(self, outputs: Iterable[HeadOutputs[QaExample]]) -> dict[str, float]:
        if not self._config.may_be_none:
            return {}
        odds, gain = [], []
        never_none = replace(self._config, no_answer=False, top_k=1)
        for one in outputs:
            example, spans = one.example, _spans(one.example, one.windows, one.outputs, self._config)
            best = spans.logits.max(initial=-np.inf)
            if np.isfinite(best):
                [answer] = _best_answers(example.context, spans, never_none)
                odds.append(-float(best) / self._config.temperature)
                gain.append(answer_f1(example.answers, answer.text, example.context) - (not example.gold))
        if not odds:
            return {}
        order = np.argsort(odds, kind="stable")  # the most certain answers first
        kept = int(np.argmax(np.concatenate([[0.0], np.cumsum(np.array(gain)[order])])))
        ranked = np.array(odds)[order]
        edges = [ranked[0] - 1, *((ranked[1:] + ranked[:-1]) / 2), ranked[-1] + 1]
        return {"null_threshold": float(edges[kept])}

    def confidences(self, example: QaExample, result: QaResult) -> list[tuple[float, bool]]:
        best = _best(result)
        return [] if best.score is None else [(best.score, exact_match(example.answers, best.text, example.context))]


class QaHead(Head[QaConfig, QaExample, QaResult]):
    """Finds the span of a context that answers a question."""

    Config = QaConfig
    network = "nlptasks.networks.span_extractor:SpanExtractor"
    schema = Schema(
        contract=2,
        fields=("question", "context", "answers", "answer", "answer_start", "is_impossible"),
        gold=("answers", "answer", "answer_start", "is_impossible"),
        results=(Answer,),
        sample="samples/qa",
        formats={**TABLES, ".json": read_squad},
    )
    hugging_face: ClassVar = QaFormat()

    @classmethod
    def configure(cls, rows: Sequence[Row], options: QaConfig, backbone: BackboneInfo) -> QaConfig:
        gold = each(lambda row: answers_field(row, text_field(row, "context")), rows)
        if not any(gold):
            where = rows[0].where.rpartition(":")[0]
            raise DataError(where, "no row has an answer", "add answers, or check `columns`")
        return replace(options, unanswerable=not all(spans is None or spans for spans in gold))

    def read(self, row: Row) -> QaExample:
        question, context = text_field(row, "question"), text_field(row, "context")
        if not question.strip():
            raise DataError(row.where, "has an empty question", "write one, or remove the row")
        gold = answers_field(row, context)
        if gold is not None and is_blank(context):
            raise DataError(row.where, "has an empty context", "remove the row")
        return QaExample(question, context, gold)

    def gold(self, example: QaExample) -> tuple[Span, ...] | None:
        return example.gold

    def inputs(self, example: QaExample) -> list[ModelInput]:
        return [ModelInput((example.question, example.context))]

    def targets(self, example: QaExample, window: Window) -> dict[str, Ints]:
        content, null = answer_tokens(window)
        possible = np.full(len(window), IGNORED, dtype=np.int64)  # [S]
        possible[content] = possible[null] = _POSSIBLE
        start, end = possible.copy(), possible
        first, last = null, null
        if example.gold:  # only the first of several gold answers is learned
            tokens = tokens_of(example.gold[0], window.offsets[content])
            if tokens and is_whole(example.gold[0], window, content):
                first, last = content[tokens[0]], content[tokens[1]]
        start[first] = end[last] = _GOLD
        return {"start": start, "end": end}

    def decode(self, example: QaExample, windows: Sequence[Window], outputs: Sequence[Outputs]) -> QaResult:
        spans = _spans(example, windows, outputs, self.config)
        answers = _best_answers(example.context, spans, self.config)
        return answers if self.config.top_k > 1 else answers[0]

    def count(self, example: QaExample, result: QaResult) -> Counts:
        return answer_counts(example.answers, _best(result).text, example.context)

    def metrics(self, counts: Counts) -> Metrics:
        return Metrics(answer_scores(counts), main="f1")

    @property
    def calibration(self) -> QaCalibration:
        return QaCalibration(self.config)

    @property
    def presenter(self) -> QaPresenter:
        return QaPresenter()


def _spans(example: QaExample, windows: Sequence[Window], outputs: Sequence[Outputs], config: QaConfig) -> AnswerSpans:
    return AnswerSpans.merged(example.context, windows, outputs, config.max_answer_tokens)


def _best_answers(context: str, spans: AnswerSpans, config: QaConfig) -> list[Answer]:
    """Return the best answers that do not overlap, the best first."""
    if not np.isfinite(spans.logits).any():
        return [Answer("", 0, 0, None)]
    left = spans.logits / config.temperature  # [n,L]
    total = log_total(left, none_allowed=config.may_be_none)
    null = Answer("", 0, 0, float(np.exp(-total)))
    answers: list[Answer] = []
    while len(answers) < config.top_k:
        first, length = np.unravel_index(int(left.argmax()), left.shape)
        score = float(left[first, length])
        if config.may_be_none and null not in answers and -score > config.null_threshold:
            answers.append(null)
            continue
        if score == -np.inf:
            break
        last = int(first + length)
        start, end = widened(context, int(spans.offsets[first, 0]), int(spans.offsets[last, 1]))
        answers.append(Answer(context[start:end], start, end, float(np.exp(score - total))))
        _remove_overlapping(left, int(first), last)
    return answers


def _remove_overlapping(logits: Floats, first: int, last: int) -> None:
    """Set all spans that share a token with these tokens to -inf."""
    starts, lengths = np.ogrid[: logits.shape[0], : logits.shape[1]]
    logits[(starts <= last) & (starts + lengths >= first)] = -np.inf


def _best(result: QaResult) -> Answer:
    return result[0] if isinstance(result, list) else result
