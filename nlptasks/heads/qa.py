"""Extractive question answering: the span of a context that answers a question, or that there is none.

Rows are ``question`` and ``context`` with ``answers``, as in SQuAD, nested (JSON) or flat (JSON Lines, CSV). A context that is
too long is read in overlapping windows, and each possible answer takes its score from the window in which it stands farthest from
a cut. All scores are relative to those of the first special token, which stands for "no answer here": so windows can be compared,
and the answers of all windows share one distribution.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor, nn

from nlptasks.backbones.backbone import BackboneInfo
from nlptasks.config import AT_LEAST_1, check_values, decided, parse_options, setting
from nlptasks.data.fields import answers_field, text_field
from nlptasks.data.readers import TABLES, read_json_file
from nlptasks.errors import DataError, ModelError, each, quote
from nlptasks.heads.base import Head
from nlptasks.heads.transformers_layers import HuggingFaceLayers
from nlptasks.metrics.calibration import TEMPERATURE_DOC, checked, fit_temperature
from nlptasks.metrics.labelling import answer_scores, exact_match
from nlptasks.text.words import Span, is_blank, widened
from nlptasks.types import (
    IGNORED,
    SECOND,
    SPECIAL,
    Floats,
    Ints,
    OnError,
    Outputs,
    Reading,
    Row,
    Source,
    Window,
    refuse,
)

_START, _END = "start_logits", "end_logits"
_POSSIBLE, _GOLD = 0, 1
"""In the features: a token at which an answer may start or end, and the one at which it does."""


@dataclass(frozen=True)
class Answer:
    """An answer: ``context[start:end]``.

    Attributes:
        text: its characters; empty if the context has no answer.
        start: first code point; 0 if there is no answer.
        end: code point behind the last; 0 if there is no answer.
        score: probability that this is the answer, in 0..1; None for a context without tokens.
    """

    text: str
    start: int
    end: int
    score: float | None


@dataclass(frozen=True)
class QaConfig:
    """Options of a head, and what its training data decided."""

    no_answer: str = setting(
        "auto",
        "whether it may answer that there is no answer: auto if training rows had none",
        choices=("auto", "true", "false"),
        at_run=True,
    )
    top_k: int = setting(
        1, "answers to give, the best ones that do not overlap; above 1 as a list", within=AT_LEAST_1, at_run=True
    )
    max_answer_tokens: int = setting(30, "longest answer, in tokens of the backbone", within=AT_LEAST_1, at_run=True)
    unanswerable: bool = decided(False, "whether training rows had no answer")
    temperature: float = decided(1.0, TEMPERATURE_DOC)
    null_threshold: float = decided(
        0.0, "log-odds of no answer against the best one above which there is said to be none"
    )

    def __post_init__(self) -> None:
        check_values(self)

    @property
    def may_be_none(self) -> bool:
        """Whether it may answer that there is no answer."""
        return self.unanswerable if self.no_answer == "auto" else self.no_answer == "true"


@dataclass(frozen=True)
class QaExample:
    """A question, a context, and where the gold answers stand in it: none if there is no answer, None without gold."""

    question: str
    context: str
    gold: tuple[Span, ...] | None

    @property
    def answers(self) -> list[str]:
        """The gold answers' texts."""
        return [self.context[start:end] for start, end in self.gold or ()]


def read_squad(path: Path, on_error: OnError = refuse) -> Iterator[Row]:
    """A SQuAD file (v1.1, v2.0), or one array of flat rows."""
    content = read_json_file(path)
    articles = content.get("data") if isinstance(content, dict) else content
    if not isinstance(articles, list):
        raise DataError(
            str(path), f"has {quote(articles)} as data, expected a list", "give a SQuAD file, or JSON Lines"
        )
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
    """The objects in a list of a record, each with its place."""
    items = record.get(name) if isinstance(record, dict) else None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise DataError(where, f"has {quote(items)} as {name}, expected a list of objects", "give a SQuAD file")
    yield from ((f"{where}.{name}[{index}]", item) for index, item in enumerate(items))


class QaHead(Head):
    """Finds the span of a context that answers a question."""

    contract = 1
    Config = QaConfig
    config: QaConfig
    main_metric = "f1"
    fields: ClassVar = ("question", "context", "answers", "answer", "answer_start", "is_impossible")
    gold_fields: ClassVar = fields[2:]
    sample = "samples/qa"
    formats: ClassVar = {**TABLES, ".json": read_squad}
    outputs: Mapping[str, str] = {_START: "BS", _END: "BS"}
    results = (Answer,)
    hf_auto = "AutoModelForQuestionAnswering"

    def __init__(self, config: QaConfig, *, backbone: BackboneInfo) -> None:
        super().__init__(config, backbone=backbone)
        self.layers = HuggingFaceLayers(self.hf_auto, backbone, classes=2, shapes=self.outputs)

    @classmethod
    def configure(cls, rows: Sequence[Row], given: Mapping[str, Any]) -> QaConfig:
        options = QaConfig(**parse_options(QaConfig, given, where="qa"))
        gold = each(lambda row: answers_field(row, text_field(row, "context")), rows)
        if not any(gold):
            raise DataError(rows[0].where, "and the rows after it have no answer at all", "check --columns")
        return replace(options, unanswerable=not all(spans is None or spans for spans in gold))

    @property
    def labels(self) -> tuple[str, ...]:
        return ()

    def read(self, row: Row) -> QaExample:
        question, context = text_field(row, "question"), text_field(row, "context")
        if not question.strip():
            raise DataError(row.where, "has an empty question", "write one, or remove the row")
        return QaExample(question, context, answers_field(row, context))

    def read_gold_row(self, row: Row) -> QaExample:
        example: QaExample = super().read_gold_row(row)
        if is_blank(example.context):
            raise DataError(row.where, "has an empty context", "remove the row")
        return example

    def gold(self, example: QaExample) -> tuple[Span, ...] | None:
        return example.gold

    def sources(self, example: QaExample) -> list[Source]:
        return [Source(example.question, example.context)]

    def features(self, example: QaExample, window: Window) -> dict[str, Ints]:
        content, null = _places(window)
        possible = np.full(len(window), IGNORED, dtype=np.int64)  # [S]
        possible[content] = possible[null] = _POSSIBLE
        start, end = possible.copy(), possible
        first, last = null, null
        if example.gold:  # of several answers the first is learned
            tokens = _tokens_of(example.gold[0], window.offsets[content])
            if tokens and _is_whole(example.gold[0], window, content):
                first, last = content[tokens[0]], content[tokens[1]]
        start[first] = end[last] = _GOLD
        return {"start": start, "end": end}

    def forward(self, states: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = self.layers(states, batch["mask"])  # [B,S] each
        return outputs

    def loss(self, states: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        outputs = self.forward(states, batch)
        losses = []
        for name, target in ((_START, batch["start"]), (_END, batch["end"])):  # [B,S]
            logits = outputs[name].float().masked_fill(target == IGNORED, -float("inf"))  # [B,S]
            losses.append(nn.functional.cross_entropy(logits, target.argmax(dim=1), reduction="sum"))
        return losses[0] + losses[1], 2 * batch["mask"][:, 0].sum()

    def calibrate(self, readings: Iterable[Reading]) -> QaConfig:
        known = []
        for reading in readings:
            spans, gold = self._spans(reading.example, reading.windows, reading.outputs), reading.example.gold
            places = [place for place in map(spans.place, gold) if place and np.isfinite(spans.logits[place])]
            if places or (self.config.may_be_none and not gold):
                known.append((spans.logits, np.array([spans.logits[place] for place in places] or [0.0], np.float32)))

        def surprise(temperature: float) -> float:
            return sum(self._log_total(all_ / temperature) - _log_sum(right / temperature) for all_, right in known)

        return replace(self.config, temperature=fit_temperature(surprise))

    def _spans(self, example: QaExample, windows: Sequence[Window], outputs: Sequence[Outputs]) -> _Spans:
        return _Spans.merged(example.context, windows, outputs, self.config.max_answer_tokens)

    def _log_total(self, logits: Floats) -> float:
        """The logarithm of what all answers add up to: no answer counts 1, if it may be given."""
        total = _log_sum(logits)
        return float(np.logaddexp(total, 0.0)) if self.config.may_be_none else total

    def fit_thresholds(self, readings: Iterable[Reading]) -> QaConfig:
        if not self.config.may_be_none:
            return self.config
        odds, gain = [], []
        given = replace(self.config, no_answer="false", top_k=1)
        for reading in readings:
            spans, example = self._spans(reading.example, reading.windows, reading.outputs), reading.example
            best = spans.logits.max(initial=-np.inf)
            if not np.isfinite(best):
                continue  # there is nothing to choose from
            [answer] = self._answers(example, spans, given)
            odds.append(-float(best) / given.temperature)
            f1 = answer_scores([example.answers], [answer.text], [example.context])["f1"]
            gain.append(f1 - (not example.gold))  # by giving the answer instead of none
        if not odds:
            return self.config
        order = np.argsort(odds, kind="stable")  # the surest answers first
        kept = int(np.argmax(np.concatenate([[0.0], np.cumsum(np.array(gain)[order])])))
        ranked = np.array(odds)[order]
        edges = [ranked[0] - 1, *((ranked[1:] + ranked[:-1]) / 2), ranked[-1] + 1]
        return replace(self.config, null_threshold=float(edges[kept]))

    def decode(
        self, example: QaExample, windows: Sequence[Window], outputs: Sequence[Outputs]
    ) -> Answer | list[Answer]:
        answers = self._answers(example, self._spans(example, windows, outputs), self.config)
        return answers if self.config.top_k > 1 else answers[0]

    def _answers(self, example: QaExample, spans: _Spans, config: QaConfig) -> list[Answer]:
        """The best answers, the best one first."""
        if not np.isfinite(spans.logits).any():
            return [Answer("", 0, 0, None)]
        left = spans.logits / config.temperature  # [n,L]
        total = self._log_total(left)
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
            start, end = widened(example.context, int(spans.offsets[first, 0]), int(spans.offsets[last, 1]))
            answers.append(Answer(example.context[start:end], start, end, float(np.exp(score - total))))
            _leave_out(left, int(first), last)
        return answers

    def scored(self, example: QaExample, result: Answer | list[Answer]) -> list[tuple[float, bool]]:
        best = _best(result)
        return [] if best.score is None else [(best.score, exact_match(example.answers, best.text, example.context))]

    def metrics(self, examples: Sequence[QaExample], results: Sequence[Answer | list[Answer]]) -> dict[str, float]:
        contexts = [example.context for example in examples]
        return answer_scores([one.answers for one in examples], [_best(result).text for result in results], contexts)

    def example_row(self) -> dict[str, str]:
        return {"question": "Who wrote it?", "context": "Ada wrote it."}

    def show(self, example: QaExample, result: Answer | list[Answer]) -> list[tuple[str, str]]:
        answers = result if isinstance(result, list) else [result]
        found = (((" ", ""), (one.text or "no answer", f"{one.score or 0:.2f}")) for one in answers)
        return [(example.question, ""), *itertools.chain.from_iterable(found)]

    @classmethod
    def from_hugging_face(cls, backbone: BackboneInfo, given: Mapping[str, Any]) -> QaConfig:
        return QaConfig(**parse_options(QaConfig, given, where="qa"))

    def to_hugging_face(self) -> tuple[dict[str, Any], list[str]]:
        lost = ["the threshold of no answer: others compare it with the best one"] if self.config.may_be_none else []
        return {}, lost


@dataclass(frozen=True)
class _Spans:
    """All answers that there could be, each with its score from the window in which it stands farthest from a cut.

    Attributes:
        logits: relative to no answer, of the answer from token i to the one k tokens further, at [i,k]: [n,L].
        offsets: code points of each token of the context [n,2].
    """

    logits: Floats
    offsets: Ints

    @classmethod
    def merged(cls, context: str, windows: Sequence[Window], outputs: Sequence[Outputs], longest: int) -> _Spans:
        """The answers of at most `longest` tokens; none begins or ends with a token that cannot be seen."""
        parts = [_places(window) for window in windows]
        size = max((window.begin + len(own) for window, (own, _) in zip(windows, parts, strict=True)), default=0)
        longest = max(1, min(longest, size))
        logits, distance = np.full((size, longest), -np.inf, np.float32), np.full((size, longest), -1)  # [n,L]
        offsets = np.zeros((size, 2), np.int64)
        for window, (content, null), output in zip(windows, parts, outputs, strict=True):
            n = len(content)
            start, end = (checked(output[name])[content] - output[name][null] for name in (_START, _END))
            blank = [is_blank(context[left:right]) for left, right in window.offsets[content]]
            start[blank] = end[blank] = -np.inf
            behind = np.full(longest - 1, -np.inf, np.float32)
            sums = start[:, None] + sliding_window_view(np.append(end, behind), longest) if n else logits[:0]  # [n,L]
            first, length = np.arange(n)[:, None], np.arange(longest)
            far = np.minimum(first + size * window.opens, n - 1 - first - length + size * window.closes)
            own = slice(window.begin, window.begin + n)
            better = far > distance[own]
            logits[own], distance[own] = np.where(better, sums, logits[own]), np.maximum(far, distance[own])
            offsets[own] = window.offsets[content]
        return cls(logits, offsets)

    def place(self, gold: Span) -> Span | None:
        """Where in `logits` the answer of these code points is; None if it is longer than any, or has no token."""
        tokens = _tokens_of(gold, self.offsets)
        return (tokens[0], tokens[1] - tokens[0]) if tokens and tokens[1] - tokens[0] < self.logits.shape[1] else None


def _places(window: Window) -> tuple[Ints, int]:
    """Where the context's tokens stand, and the token for no answer.

    Raises:
        ModelError: there is none.
    """
    special = np.flatnonzero(window.parts == SPECIAL)
    if not len(special):
        problem = "puts no special token around a question and its context, for 'no answer' to point to"
        raise ModelError("tokenizer", problem, "take a backbone whose tokenizer.json does")
    return np.flatnonzero(window.parts == SECOND), int(special[0])


def _tokens_of(span: Span, offsets: Ints) -> Span | None:
    """The first and the last of these tokens that have a part of a span; None if none has."""
    inside = np.flatnonzero((offsets[:, 1] > span[0]) & (offsets[:, 0] < span[1]))
    return (int(inside[0]), int(inside[-1])) if len(inside) else None


def _is_whole(span: Span, window: Window, content: Ints) -> bool:
    """Whether nothing of a span is in another window alone."""
    begins = window.opens or window.offsets[content[0], 0] <= span[0]
    return bool(begins and (window.closes or window.offsets[content[-1], 1] >= span[1]))


def _leave_out(grid: Floats, first: int, last: int) -> None:
    """Take all answers that share a token with these out of the grid."""
    starts, lengths = np.ogrid[: grid.shape[0], : grid.shape[1]]
    grid[(starts <= last) & (starts + lengths >= first)] = -np.inf


def _log_sum(values: Floats) -> float:
    """The logarithm of the sum of exponentials."""
    highest = values.max(initial=-np.inf)
    return float(highest + np.log(np.exp(values - highest).sum())) if np.isfinite(highest) else -np.inf


def _best(result: Answer | list[Answer]) -> Answer:
    return result[0] if isinstance(result, list) else result
