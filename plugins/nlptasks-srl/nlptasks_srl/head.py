"""Semantic role labelling: for each predicate of a text, who did what to whom, when, where and how.

Rows are ``tokens``, ``predicate`` (the index of its word) and ``tags`` (BIO roles, with ``B-V`` at the predicate; all ``O`` if
the word is no predicate). The predicate is marked in the text that the backbone reads, and every word gets a role in relation to
it. In a text without ``predicates``, each word whose form was a predicate in training is a candidate: it is marked, and then
accepted or rejected.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import numpy as np

from nlptasks import (
    NO_WEIGHTS,
    TABLES,
    TEMPERATURE_DOC,
    BackboneInfo,
    Calibration,
    Counts,
    DataError,
    Floats,
    Head,
    HeadOutputs,
    Ints,
    LabelledSpan,
    Metrics,
    ModelInput,
    Outputs,
    Presenter,
    Range,
    Result,
    Row,
    Schema,
    SoftmaxLikelihood,
    SpacyWriter,
    Span,
    TagDecoder,
    UsageError,
    Window,
    check_values,
    checked,
    class_weights,
    close_unspaced,
    derived,
    did_you_mean,
    each,
    in_words,
    is_blank,
    join_words,
    list_field,
    log_softmax,
    merge,
    option,
    quote,
    spans_of,
    tag_set,
    tags_of,
    text_field,
    weights_option,
    words,
)
from nlptasks_srl.columns import PREDICATE, read_columns
from nlptasks_srl.marking import Clause, around, by_input, clause_of, sentences, word_labels, word_logits
from nlptasks_srl.rows import SCHEME, Gold, gold_of, has_words, named_words
from nlptasks_srl.scoring import argument_counts, predicate_counts, srl_scores

_log = logging.getLogger("nlptasks")

_COLUMN_SUFFIXES = ("", ".conll", ".props", ".txt", ".tsv", ".gold_conll", ".v4_gold_conll", ".v9_gold_conll")


@dataclass(frozen=True)
class Argument(Result):
    """A part of a text that has a role in relation to a predicate: ``text[start:end]``.

    Attributes:
        text: its characters.
        role: its role, as in the training data: ``A0``, ``AM-TMP``.
        start: first code point.
        end: code point after the last.
        score: probability of the tag of its least certain word, in 0..1.
    """

    text: str
    role: str
    start: int
    end: int
    score: float


@dataclass(frozen=True)
class Frame(Result):
    """A predicate and its arguments.

    Attributes:
        predicate: its characters, ``text[start:end]``.
        start: first code point.
        end: code point after the last.
        score: probability that it is a predicate, in 0..1.
        arguments: its arguments, in order.
    """

    predicate: str
    start: int
    end: int
    score: float
    arguments: tuple[Argument, ...]


@dataclass(frozen=True)
class SrlConfig:
    """Options of a head, and what its training data decided."""

    class_weights: str | Mapping[str, float] = weights_option(
        "; labels are roles, and O is that of words without a role"
    )
    threshold: float = option(
        0.5,
        "the least probability, in 0..1, of a word that is accepted as a predicate",
        within=Range(least=0, most=1),
        at_run=True,
    )
    markers: str = option("[ ]", "the two words before and after the predicate in the text that the backbone reads")
    tags: tuple[str, ...] = derived((), "the classes, in order")
    forms: tuple[str, ...] = derived((), "the words, in lower case, that were predicates in the training data")
    weights: tuple[float, ...] = derived(
        (), "weights of the classes in the loss; empty for equal ones", within=Range(above=0)
    )
    temperature: float = derived(1.0, TEMPERATURE_DOC, within=Range(above=0))

    def __post_init__(self) -> None:
        check_values(self)
        parts = self.markers.split()
        if len(parts) != 2 or any(map(is_blank, parts)):
            raise UsageError("markers", f"is {quote(self.markers)}", "set two words with a space between, such as [ ]")


@dataclass(frozen=True)
class SrlExample:
    """A text in words, with the words that are, or may be, predicates.

    Attributes:
        text: the text that offsets refer to; given words are joined by one space.
        words: code points of its words.
        clauses: for each of these words, in order, its sentence with the word marked.
        named: True if the row names its predicates; else the words are candidates.
        gold: spans of words with their roles, for one predicate, with V; empty if it is no predicate, None without a gold answer.
        classes: the gold class of each word [W], empty without a gold answer.
    """

    text: str
    words: list[Span]
    clauses: tuple[Clause, ...]
    named: bool
    gold: tuple[LabelledSpan, ...] | None
    classes: Ints


class SrlWriter(SpacyWriter[list[Frame]]):
    """``doc._.frames`` has the frames of the first such head as plain dicts, which are part of the document's bytes."""

    assigns = ("doc._.frames",)

    def write(self, doc: Any, result: list[Frame], name: str) -> None:
        if doc._.frames is None:
            doc._.frames = [asdict(frame) | {"arguments": list(map(asdict, frame.arguments))} for frame in result]


class SrlPresenter(Presenter[SrlExample, list[Frame]]):
    """Shows the sentence of each predicate with its roles."""

    def __init__(self, labels: tuple[str, ...]) -> None:
        self.labels = labels

    def gold_labels(self, example: SrlExample) -> list[str]:
        return [role for _, _, role in example.gold or () if role != PREDICATE]

    def render(self, example: SrlExample, result: list[Frame]) -> list[tuple[str, str]]:
        if not result:
            return [(example.text, ""), (" no predicates", "")]
        by_start = {example.words[clause.first + clause.at][0]: clause for clause in example.clauses}
        pieces: list[tuple[str, str]] = []
        for frame in result:
            clause = by_start[frame.start]
            at, end = example.words[clause.first][0], example.words[clause.first + len(clause.places) - 1][1]
            marked = [(one.start, one.end, one.role) for one in frame.arguments]
            pieces += [(" | ", "")] if pieces else []
            for start, after, role in sorted([*marked, (frame.start, frame.end, PREDICATE)]):
                pieces += [(example.text[at:start], ""), (example.text[start:after], role)]
                at = after
            pieces.append((example.text[at:end], ""))
        return pieces


class SrlCalibration(Calibration[SrlExample, list[Frame]]):
    """Calibrates the probability of each word's class."""

    def __init__(self, classes: int) -> None:
        self._classes = classes

    def likelihood(self, outputs: Iterable[HeadOutputs[SrlExample]]) -> SoftmaxLikelihood:
        gold, logits = [np.zeros(0, np.int64)], [np.zeros((0, self._classes), np.float32)]
        for one in outputs:
            for clause, own in _by_clause(one.example, one.windows, one.outputs):
                read, found = word_logits(clause, *own)  # [W'], [W',C]
                gold.append(one.example.classes[read])
                logits.append(found)
        return SoftmaxLikelihood(np.concatenate(logits), np.concatenate(gold))

    def confidences(self, example: SrlExample, result: list[Frame]) -> list[tuple[float, bool]]:
        gold = set(example.gold or ())
        found = [(frame.score, bool(gold)) for frame in result]
        if gold:
            scores = [argument.score for frame in result for argument in frame.arguments]
            found += [(score, span in gold) for score, span in zip(scores, _spans(example, result), strict=True)]
        return found


class SrlHead(Head[SrlConfig, SrlExample, list[Frame]]):
    """Finds predicates and their arguments."""

    Config = SrlConfig
    network = "nlptasks.networks.token_classifier:TokenClassifier"
    schema = Schema(
        contract=2,
        fields=("tokens", "predicate", "tags", "text", "predicates"),
        gold=("tags",),
        results=(Frame, Argument),
        formats={
            **{suffix: TABLES[suffix] for suffix in (".jsonl", ".ndjson", ".csv")},
            **dict.fromkeys(_COLUMN_SUFFIXES, read_columns),
        },
    )
    spacy: ClassVar = SrlWriter()

    def __init__(self, config: SrlConfig, backbone: BackboneInfo) -> None:
        super().__init__(config, backbone)
        before, after = config.markers.split()
        self._markers = (before, after)
        self._decoder = TagDecoder(config.tags, SCHEME)
        self._class_of = {tag: index for index, tag in enumerate(config.tags)}
        self._predicate = self._class_of[f"B-{PREDICATE}"]
        self._roles = {tag.partition("-")[2] for tag in config.tags if tag != "O"}
        self._forms = frozenset(config.forms)

    @classmethod
    def configure(cls, rows: Sequence[Row], options: SrlConfig, backbone: BackboneInfo) -> SrlConfig:
        gold = each(gold_of, rows)
        roles = sorted({role for one in gold for _, _, role in one.roles})
        if not roles:
            where = rows[0].where.rpartition(":")[0]
            raise DataError(where, "no row has a predicate", "write B-V at the predicate, or check `columns`")
        if all(one.roles for one in gold):
            _log.warning(
                "no training row has a word that is no predicate (all tags O), so every word of a text that was a predicate in "
                "training is likely to be accepted as one"
            )
        tags = tag_set(roles, SCHEME)
        forms = {one.tokens[one.predicate].lower() for one in gold if one.roles}
        return replace(options, tags=tags, forms=tuple(sorted(forms)), weights=_weights(options, tags, gold))

    def network_options(self) -> Mapping[str, Any]:
        return {"classes": len(self.config.tags), "weights": self.config.weights}

    def read(self, row: Row) -> SrlExample:
        if "tags" in row.fields:
            return self._read_gold(row)
        if has_words(row):
            text, places = join_words(list_field(row, "tokens"))
            source, source_places = close_unspaced(text, places)
            parts = [(0, len(places))]
        else:
            text = source = text_field(row)
            places = source_places = words(text)
            parts = sentences(text, places)
        named = named_words(row, len(places))
        marked = self._candidates(text, places) if named is None else named
        sentence_of = {index: part for part in parts for index in range(*part)}
        clauses = (clause_of(source, source_places, around(sentence_of[at], at), at, self._markers) for at in marked)
        return SrlExample(text, places, tuple(clauses), named is not None, None, np.zeros(0, np.int64))

    def _read_gold(self, row: Row) -> SrlExample:
        gold = gold_of(row)
        for start, _, role in gold.roles:
            if role not in self._roles:
                problem = f"role {quote(role)} is not in the training data"
                raise DataError(row.line(start), problem, did_you_mean(role, self._roles))
        text, places = join_words(gold.tokens)
        source, source_places = close_unspaced(text, places)
        clause = clause_of(source, source_places, (0, len(places)), gold.predicate, self._markers)
        tags = tags_of(gold.roles, len(places), SCHEME)
        classes = np.array([self._class_of[tag] for tag in tags], dtype=np.int64)  # [W]
        return SrlExample(text, places, (clause,), True, tuple(gold.roles), classes)

    def _candidates(self, text: str, places: Sequence[Span]) -> list[int]:
        """Return the words that were a predicate somewhere in the training data."""
        return [index for index, (start, end) in enumerate(places) if text[start:end].lower() in self._forms]

    def gold(self, example: SrlExample) -> tuple[LabelledSpan, ...] | None:
        return example.gold

    def inputs(self, example: SrlExample) -> list[ModelInput]:
        return [ModelInput((clause.source,)) for clause in example.clauses]

    def targets(self, example: SrlExample, window: Window) -> dict[str, Ints]:
        [clause] = example.clauses
        return {"labels": word_labels(clause, example.classes, window)}  # [S]

    def decode(self, example: SrlExample, windows: Sequence[Window], outputs: Sequence[Outputs]) -> list[Frame]:
        frames = [self._frame(example, clause, *own) for clause, own in _by_clause(example, windows, outputs)]
        return [frame for frame in frames if frame is not None]

    def _frame(
        self, example: SrlExample, clause: Clause, windows: Sequence[Window], outputs: Sequence[Outputs]
    ) -> Frame | None:
        """Return the frame of a marked word; None if it is rejected as a predicate, or has no token."""
        read, logits = word_logits(clause, windows, outputs)  # [W'], [W',C]
        if not len(read):
            return None
        log_probs = log_softmax(checked(logits), self.config.temperature)  # [W',C]
        at = int(np.searchsorted(read, clause.at))
        score = float(np.exp(log_probs[at, self._predicate]))
        if not example.named and score < self.config.threshold:
            return None
        path = self._decoder.best(self._with_predicate(log_probs, at))  # [W']
        certainty = np.exp(log_probs[np.arange(len(path)), path])  # [W']
        predicate, arguments = (0, 0), []
        for first, after, role in spans_of([self.config.tags[index] for index in path], SCHEME):
            one, last = clause.first + int(read[first]), clause.first + int(read[after - 1])
            start, end = example.words[one][0], example.words[last][1]
            if role == PREDICATE:
                predicate = (start, end)
            else:
                least = float(certainty[first:after].min())
                arguments.append(Argument(example.text[start:end], role, start, end, least))
        return Frame(example.text[slice(*predicate)], *predicate, score, tuple(arguments))

    def _with_predicate(self, log_probs: Floats, at: int) -> Floats:
        """Return scores [W',C] with which V begins at this word and nowhere else."""
        forced = log_probs.copy()
        forced[:, self._predicate] = -np.inf
        forced[at] = -np.inf
        forced[at, self._predicate] = 0.0
        return forced

    def count(self, example: SrlExample, result: list[Frame]) -> Counts:
        gold = example.gold or ()
        accepted = any(frame.score >= self.config.threshold for frame in result)
        predicate = predicate_counts(gold=bool(gold), predicted=accepted)
        return merge([predicate, argument_counts(gold, _spans(example, result))]) if gold else predicate

    def metrics(self, counts: Counts) -> Metrics:
        return Metrics(srl_scores(counts), main="f1")

    @property
    def calibration(self) -> SrlCalibration:
        return SrlCalibration(len(self.config.tags))

    @property
    def presenter(self) -> SrlPresenter:
        return SrlPresenter(tuple(sorted(self._roles - {PREDICATE})))


def _by_clause(
    example: SrlExample, windows: Sequence[Window], outputs: Sequence[Outputs]
) -> Iterable[tuple[Clause, tuple[list[Window], list[Outputs]]]]:
    """Return the clauses with their windows and outputs. All have some, or none has in a text without tokens."""
    return zip(example.clauses, by_input(windows, outputs), strict=bool(windows))


def _spans(example: SrlExample, frames: Sequence[Frame]) -> list[LabelledSpan]:
    """Return the arguments of frames as spans of words."""
    return in_words(example.words, [(one.start, one.end, one.role) for frame in frames for one in frame.arguments])


def _weights(options: SrlConfig, tags: Sequence[str], gold: Sequence[Gold]) -> tuple[float, ...]:
    """Return the weight of each tag, which is that of its role; empty for equal weights."""
    if options.class_weights == NO_WEIGHTS:
        return ()
    roles = [tag.partition("-")[2] or "O" for tag in tags]
    counts: Counter[str] = Counter()
    for one in gold:
        for start, end, role in one.roles:
            counts[role] += end - start
        counts["O"] += len(one.tokens) - sum(end - start for start, end, _ in one.roles)
    found = class_weights(options.class_weights, {role: counts[role] for role in roles})
    return tuple(found[role] for role in roles)
