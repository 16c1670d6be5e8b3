"""Named entity recognition: labelled spans of words.

Rows are ``tokens`` and ``tags`` (CoNLL, JSON Lines, CSV), or ``text`` and ``spans`` with character offsets. The label of a word
is read at its first token. Where windows overlap, a word is read in the window in which it is farthest from an edge. Viterbi
decoding over the whole text gives the best legal tag sequence, so an entity never begins in the middle.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from nlptasks.backbones.info import BackboneInfo
from nlptasks.config import ABOVE_0, SHARE_BELOW_1, check_values, derived, option
from nlptasks.data.fields import list_field, spans_field, text_field
from nlptasks.data.readers import TABLES, read_conll
from nlptasks.errors import DataError, ModelError, did_you_mean, each, listing, quote
from nlptasks.heads.base import Calibration, Head, HuggingFaceFormat, Presenter, Schema, SpacyWriter
from nlptasks.heads.checkpoint_labels import checkpoint_labels
from nlptasks.heads.class_weights import NO_WEIGHTS, SMOOTHING_DOC, class_weights, weights_option
from nlptasks.metrics.base import Counts, Metrics
from nlptasks.metrics.calibration import TEMPERATURE_DOC, SoftmaxLikelihood, checked, log_softmax
from nlptasks.metrics.labelling import span_counts, span_scores
from nlptasks.text.tags import (
    OUTSIDE,
    SCHEMES,
    LabelledSpan,
    TagDecoder,
    TagError,
    detect_scheme,
    in_words,
    labels_of,
    parse_tags,
    scheme_of_classes,
    spans_of,
    tag_set,
    tags_of,
)
from nlptasks.text.word_outputs import word_outputs
from nlptasks.text.words import close_unspaced, join_words, words, words_in
from nlptasks.types import IGNORED, Floats, HeadOutputs, Ints, ModelInput, Outputs, Result, Row, Span, Window

_log = logging.getLogger("nlptasks")

_CONLL_SUFFIXES = ("", ".conll", ".tsv", ".txt", ".bio", ".iob", ".iob2", ".bioes", ".io")


@dataclass(frozen=True)
class Entity(Result):
    """An entity in a text: ``text[start:end]``.

    Attributes:
        text: its characters.
        label: its label, as in the training data.
        start: first code point.
        end: code point after the last.
        score: probability of the tag of its least certain word, in 0..1.
    """

    text: str
    label: str
    start: int
    end: int
    score: float


@dataclass(frozen=True)
class NerConfig:
    """Options of a head, and what its training data decided."""

    scheme: str = option("auto", "tag scheme of the training data: auto detects it", choices=("auto", *SCHEMES))
    class_weights: str | Mapping[str, float] = weights_option("; O is the label of words outside entities")
    label_smoothing: float = option(0.0, SMOOTHING_DOC, within=SHARE_BELOW_1)
    tags: tuple[str, ...] = derived((), "the classes, in order")
    tags_scheme: str = derived("iob2", "the scheme of the classes")
    weights: tuple[float, ...] = derived((), "weights of the classes in the loss; empty for equal ones", within=ABOVE_0)
    temperature: float = derived(1.0, TEMPERATURE_DOC, within=ABOVE_0)

    def __post_init__(self) -> None:
        check_values(self)


@dataclass(frozen=True)
class NerExample:
    """A text in words.

    Attributes:
        text: the text that offsets refer to; given words are joined by one space.
        words: code points of its words.
        source: the text that the backbone reads.
        source_words: code points of the words there [W,2].
        gold: code points and label of each gold entity, None if there is no gold answer.
        classes: the gold class of each word [W], empty if there is no gold answer.
    """

    text: str
    words: list[Span]
    source: str
    source_words: Ints
    gold: list[LabelledSpan] | None
    classes: Ints


class NerFormat(HuggingFaceFormat[NerConfig]):
    """Checkpoints whose classes are tags."""

    def to_config(self, backbone: BackboneInfo, options: Mapping[str, Any]) -> NerConfig:
        config = NerConfig(**options)
        tags = checkpoint_labels(backbone.config)
        if any(tag.startswith("LABEL_") for tag in tags):
            raise ModelError("config.json", f"names its classes {listing(tags)}", "write the tags into its id2label")
        scheme = scheme_of_classes(tags) if config.scheme == "auto" else config.scheme
        return replace(config, tags=tags, tags_scheme=scheme, scheme="lenient")

    def to_checkpoint(self, config: NerConfig, backbone: BackboneInfo) -> tuple[dict[str, Any], list[str]]:
        return {"id2label": dict(enumerate(config.tags))}, []


class NerWriter(SpacyWriter[list[Entity]]):
    """``doc.spans[name]`` gets every entity, widened to whole tokens; ``doc.ents`` those that overlap no earlier one."""

    assigns = ("doc.spans", "doc.ents")

    def write(self, doc: Any, result: list[Entity], name: str) -> None:
        doc.spans[name] = [doc.char_span(e.start, e.end, label=e.label, alignment_mode="expand") for e in result]
        taken = {token.i for entity in doc.ents for token in entity}
        free = []
        for span in doc.spans[name]:
            if taken.isdisjoint(range(span.start, span.end)):
                taken.update(range(span.start, span.end))
                free.append(span)
        doc.ents = [*doc.ents, *free]


class NerPresenter(Presenter[NerExample, list[Entity]]):
    """Shows the text with its entities."""

    def __init__(self, labels: tuple[str, ...]) -> None:
        self.labels = labels

    def gold_labels(self, example: NerExample) -> list[str]:
        return [label for _, _, label in example.gold or []]

    def render(self, example: NerExample, result: list[Entity]) -> list[tuple[str, str]]:
        pieces: list[tuple[str, str]] = []
        at = 0
        for entity in result:
            pieces += [(example.text[at : entity.start], ""), (entity.text, entity.label)]
            at = entity.end
        return [*pieces, (example.text[at:], "")]


class NerCalibration(Calibration[NerExample, list[Entity]]):
    """Calibrates the probability of each word's class."""

    def __init__(self, classes: int) -> None:
        self._classes = classes

    def likelihood(self, outputs: Iterable[HeadOutputs[NerExample]]) -> SoftmaxLikelihood:
        gold, logits = [np.zeros(0, np.int64)], [np.zeros((0, self._classes), np.float32)]
        for one in outputs:
            kept, own = _word_logits(one)  # [W'], [W',C]
            if len(kept):
                gold.append(one.example.classes[kept])
                logits.append(own)
        return SoftmaxLikelihood(np.concatenate(logits), np.concatenate(gold))

    def confidences(self, example: NerExample, result: list[Entity]) -> list[tuple[float, bool]]:
        gold = set(example.gold or ())
        return [(entity.score, (entity.start, entity.end, entity.label) in gold) for entity in result]


class NerHead(Head[NerConfig, NerExample, list[Entity]]):
    """Finds named entities."""

    Config = NerConfig
    network = "nlptasks.networks.token_classifier:TokenClassifier"
    schema = Schema(
        contract=2,
        fields=("tokens", "tags", "text", "spans"),
        gold=("tags", "spans"),
        results=(Entity,),
        sample="samples/ner",
        formats={**TABLES, **dict.fromkeys(_CONLL_SUFFIXES, read_conll)},
    )
    hugging_face: ClassVar = NerFormat()
    spacy: ClassVar = NerWriter()

    def __init__(self, config: NerConfig, backbone: BackboneInfo) -> None:
        super().__init__(config, backbone)
        self._decoder = TagDecoder(config.tags, config.tags_scheme)
        self._labels = labels_of(config.tags, config.tags_scheme)
        self._class_of = {tag: index for index, tag in enumerate(config.tags)}

    @classmethod
    def configure(cls, rows: Sequence[Row], options: NerConfig, backbone: BackboneInfo) -> NerConfig:
        gold = each(_gold_of, rows)
        tagged = [(row, one.tags) for row, one in zip(rows, gold, strict=True) if one.tags is not None]
        scheme = _detected(tagged) if options.scheme == "auto" else options.scheme
        labels = sorted({label for one in gold for label in one.labels(scheme)})
        if not labels:
            where = rows[0].where.rpartition(":")[0]
            raise DataError(where, "no row contains an entity", "annotate some, or check `columns`")
        if scheme == "io":
            _check_io(labels, rows[0].where)
        _warn_of_edges_in_words(rows, gold)
        tags = tag_set(labels, "iob2")
        return replace(options, scheme=scheme, tags=tags, weights=_weights(options, scheme, tags, gold))

    def network_options(self) -> Mapping[str, Any]:
        return {
            "classes": len(self.config.tags),
            "weights": self.config.weights,
            "smoothing": self.config.label_smoothing,
        }

    def read(self, row: Row) -> NerExample:
        if _has_words(row):
            return self._read_tokens(row)
        text = text_field(row)
        gold = spans_field(row) if "spans" in row.fields else None
        self._check_labels(row, [label for _, _, label in gold or []])
        spans = words(text)
        return self._example(text, spans, text, spans, gold)

    def _read_tokens(self, row: Row) -> NerExample:
        tokens = list_field(row, "tokens")
        text, spans = join_words(tokens)
        source, source_words = close_unspaced(text, spans)
        gold = None
        if "tags" in row.fields:
            tags = list_field(row, "tags")
            if len(tags) != len(tokens):
                raise DataError(row.where, f"has {len(tokens)} tokens and {len(tags)} tags", "give each token one tag")
            try:
                found = spans_of(tags, self.config.scheme)
            except TagError as error:
                fix = "correct it, or write all data in one scheme"
                raise DataError(row.line(error.word), error.problem, fix) from None
            self._check_labels(row, [label for _, _, label in found], items=[start for start, _, _ in found])
            gold = [(spans[start][0], spans[end - 1][1], label) for start, end, label in found]
        return self._example(text, spans, source, source_words, gold)

    def _example(
        self, text: str, spans: list[Span], source: str, source_words: list[Span], gold: list[LabelledSpan] | None
    ) -> NerExample:
        tags = tags_of(in_words(spans, gold), len(spans), self.config.tags_scheme) if gold is not None else []
        classes = np.array([self._class_of.get(tag, IGNORED) for tag in tags], dtype=np.int64)  # [W]
        places = np.array(source_words, dtype=np.int64).reshape(-1, 2)  # [W,2]
        return NerExample(text, spans, source, places, gold, classes)

    def _check_labels(self, row: Row, labels: Sequence[str], *, items: Sequence[int] = ()) -> None:
        for index, label in enumerate(labels):
            if label not in self._labels:
                where = row.line(items[index]) if items else row.where
                problem = f"label {quote(label)} is not in the training data"
                raise DataError(where, problem, did_you_mean(label, self._labels))

    def gold(self, example: NerExample) -> tuple[LabelledSpan, ...] | None:
        return None if example.gold is None else tuple(example.gold)

    def inputs(self, example: NerExample) -> list[ModelInput]:
        return [ModelInput((example.source,))]

    def targets(self, example: NerExample, window: Window) -> dict[str, Ints]:
        labels = np.full(len(window), IGNORED, dtype=np.int64)  # [S]
        words_here, tokens = words_in(example.source_words, window)
        labels[tokens] = example.classes[words_here]
        return {"labels": labels}

    def decode(self, example: NerExample, windows: Sequence[Window], outputs: Sequence[Outputs]) -> list[Entity]:
        kept, logits = _word_logits(HeadOutputs(example, windows, outputs))  # [W'], [W',C]
        log_probs = log_softmax(checked(logits), self.config.temperature)  # [W',C]
        path = self._decoder.best(log_probs)  # [W']
        tags = [self.config.tags[index] for index in path]
        certainty = np.exp(log_probs[np.arange(len(path)), path])  # [W']
        entities = []
        for first, after, label in spans_of(tags, self.config.tags_scheme):
            start, end = example.words[kept[first]][0], example.words[kept[after - 1]][1]
            score = float(certainty[first:after].min())
            entities.append(Entity(example.text[start:end], label, start, end, score))
        return entities

    def count(self, example: NerExample, result: list[Entity]) -> Counts:
        return span_counts(example.gold or [], [(entity.start, entity.end, entity.label) for entity in result])

    def metrics(self, counts: Counts) -> Metrics:
        return Metrics(span_scores(counts), main="f1")

    @property
    def calibration(self) -> NerCalibration:
        return NerCalibration(len(self.config.tags))

    @property
    def presenter(self) -> NerPresenter:
        return NerPresenter(self._labels)


def _word_logits(outputs: HeadOutputs[NerExample]) -> tuple[Ints, Floats]:
    """Return the words that have a token [W'], and their logits [W',C]."""
    logits = [output["logits"] for output in outputs.outputs]
    return word_outputs(outputs.example.source_words, outputs.windows, logits)


@dataclass(frozen=True)
class _Gold:
    """The gold answer of a training row before the classes are known: tags of given words, or spans of a text."""

    words: list[Span]
    tags: list[str] | None
    spans: list[LabelledSpan]

    def labels(self, scheme: str) -> Iterable[str]:
        """Return the labels of its entities."""
        return labels_of(self.tags, scheme) if self.tags is not None else [label for _, _, label in self.spans]

    def word_labels(self, scheme: str) -> list[str]:
        """Return the label of each word, ``O`` for none."""
        if self.tags is not None:
            return [tag.label or OUTSIDE for tag in parse_tags(self.tags, scheme)]
        labels = [OUTSIDE] * len(self.words)
        for first, after, label in in_words(self.words, self.spans):
            labels[first:after] = [label] * (after - first)
        return labels


def _gold_of(row: Row) -> _Gold:
    if _has_words(row):
        return _Gold([], list_field(row, "tags"), [])
    return _Gold(words(text_field(row)), None, spans_field(row))


def _weights(options: NerConfig, scheme: str, tags: Sequence[str], gold: Sequence[_Gold]) -> tuple[float, ...]:
    """Return the weight of each tag, which is that of its label; empty for equal weights."""
    if options.class_weights == NO_WEIGHTS:
        return ()
    words_of = Counter(label for one in gold for label in one.word_labels(scheme))
    labels = [tag.label or OUTSIDE for tag in parse_tags(tags, "iob2")]
    counts = {label: words_of[label] for label in labels}
    found = class_weights(options.class_weights, counts)
    return tuple(found[label] for label in labels)


def _check_io(labels: Sequence[str], where: str) -> None:
    """Refuse tags of another scheme: in ``io``, prefixes are part of the label."""
    for label in labels:
        if label.startswith(("B-", "B_")) and label[2:] in labels:
            problem = f"the data have the labels {quote(label)} and {quote(label[2:])}, so they are not in io"
            raise DataError(where, problem, "set the option scheme to theirs, or rename one label")


def _warn_of_edges_in_words(rows: Sequence[Row], gold: Sequence[_Gold]) -> None:
    """Warn of gold entities that begin or end inside a word: they are learned as whole words."""
    total, inside = 0, []
    for row, one in zip(rows, gold, strict=True):
        starts, ends = {start for start, _ in one.words}, {end for _, end in one.words}
        total += len(one.spans)
        inside += [
            f"{quote(row.fields['text'][start:end])} ({row.where})"
            for start, end, _ in one.spans
            if start not in starts or end not in ends
        ]
    if inside:
        _log.warning(
            "%d of %d entities begin or end inside a word and are learned as whole words: %s",
            len(inside),
            total,
            listing(inside, limit=3),
        )


def _detected(tagged: Sequence[tuple[Row, list[str]]]) -> str:
    """Return the scheme of the tags. Tags with I alone are read as iob1, which may use B in other rows."""
    try:
        scheme = detect_scheme([tags for _, tags in tagged])
        return "iob1" if scheme == "io" and any(tag.startswith("I-") for _, tags in tagged for tag in tags) else scheme
    except TagError as error:
        where = tagged[error.sentence][0].line(error.word)
        raise DataError(
            where, error.problem, 'correct the tag, or declare the scheme: `options={"scheme": "SCHEME"}`'
        ) from None


def _has_words(row: Row) -> bool:
    """Return True if the row gives words. If it has both words and a text, the text is read unless the words are tagged.

    Raises:
        DataError: the row has neither.
    """
    if "tokens" not in row.fields and "text" not in row.fields:
        fix = 'name the column, for example `columns={"text": "NAME"}`'
        raise DataError(row.where, f"has neither 'tokens' nor 'text', only {listing(row.fields)}", fix)
    return "tokens" in row.fields and ("tags" in row.fields or "text" not in row.fields)
