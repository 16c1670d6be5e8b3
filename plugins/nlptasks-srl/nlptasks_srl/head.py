"""Semantic role labelling: for each predicate of a text, who did what to whom, when, where and how.

Rows are ``tokens``, ``predicate`` (the number of its word, from 0) and ``tags`` (BIO roles, with ``B-V`` at the predicate; all
``O`` if the word is no predicate). The predicate is marked in what the backbone reads, and every word gets a role in relation to
it. In a text without ``predicates``, each word whose form was a predicate in training is read so, and judged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from nlptasks import (
    TABLES,
    BackboneInfo,
    DataError,
    Floats,
    Head,
    HuggingFaceLayers,
    Ints,
    LabelledSpan,
    Outputs,
    Range,
    Reading,
    Row,
    Source,
    TagDecoder,
    UsageError,
    Window,
    check_values,
    checked,
    class_weights,
    close_unspaced,
    cross_entropy,
    decided,
    did_you_mean,
    each,
    fit_temperature,
    in_words,
    is_blank,
    join_words,
    list_field,
    listing,
    log_softmax,
    parse_options,
    quote,
    setting,
    spans_of,
    tag_set,
    tags_of,
    text_field,
    words,
)
from nlptasks_srl.columns import PREDICATE, read_columns
from nlptasks_srl.marking import Clause, Place, around, by_source, clause_of, sentences, word_labels, word_logits
from nlptasks_srl.rows import Gold, gold_of, named_words
from nlptasks_srl.scoring import argument_scores, predicate_scores

_SCHEME = "iob2"
_COLUMN_SUFFIXES = ("", ".conll", ".props", ".txt", ".tsv", ".gold_conll", ".v4_gold_conll", ".v9_gold_conll")


@dataclass(frozen=True)
class Argument:
    """What has a role in relation to a predicate: ``text[start:end]``.

    Attributes:
        text: its characters.
        role: its role, as the training data spelled it: ``A0``, ``AM-TMP``.
        start: first code point.
        end: code point behind the last.
        score: probability of its least certain word's tag, in 0..1.
    """

    text: str
    role: str
    start: int
    end: int
    score: float


@dataclass(frozen=True)
class Frame:
    """A predicate and its arguments.

    Attributes:
        predicate: its characters, ``text[start:end]``.
        start: first code point.
        end: code point behind the last.
        score: probability that it is a predicate, in 0..1.
        arguments: what has a role, in order.
    """

    predicate: str
    start: int
    end: int
    score: float
    arguments: tuple[Argument, ...]


@dataclass(frozen=True)
class SrlConfig:
    """Options of a head, and what its training data decided."""

    class_weights: str = setting(
        "none",
        "weights of the roles in the loss: none, balanced (rare ones count more), or ROLE:WEIGHT,... (others count 1); the role "
        "of what has none is O",
    )
    threshold: float = setting(
        0.5,
        "the least probability, in 0..1, with which a word of a text is taken for a predicate",
        within=Range(least=0, most=1),
        at_run=True,
    )
    markers: str = setting("[ ]", "the two words that stand before and behind the predicate in what the backbone reads")
    tags: tuple[str, ...] = decided((), "the classes, in order")
    forms: tuple[str, ...] = decided((), "the words, in small letters, that were predicates in the training data")
    weights: tuple[float, ...] = decided((), "the weight of each class in the loss, empty if all count alike")
    temperature: float = decided(1.0, "what logits are divided by before they become probabilities; 1 if not fitted")

    def __post_init__(self) -> None:
        check_values(self)
        parts = self.markers.split()
        if len(parts) != 2 or any(map(is_blank, parts)):
            raise UsageError("markers", f"is {quote(self.markers)}", "give two words with a space between, such as [ ]")


@dataclass(frozen=True)
class SrlExample:
    """A text in words, with the words of it that are, or may be, predicates.

    Attributes:
        text: the text that offsets refer to; given words are joined by one space.
        words: code points of its words.
        clauses: for each word that is to be read as a predicate, in order, its sentence with the word marked.
        named: whether these words were named as predicates; else they are judged.
        gold: the roles of the one predicate, in words, with V; empty if the word is none, None if there is no gold.
        classes: the class of each word by the gold [W], empty if there is no gold.
    """

    text: str
    words: list[Place]
    clauses: tuple[Clause, ...]
    named: bool
    gold: tuple[LabelledSpan, ...] | None
    classes: Ints


class SrlHead(Head):
    """Finds predicates, and what has which role in relation to each."""

    contract = 1
    Config = SrlConfig
    config: SrlConfig
    main_metric = "f1"
    fields: ClassVar = ("tokens", "predicate", "tags", "text", "predicates")
    gold_fields: ClassVar = ("tags",)
    sample = "sample"
    results, assigns = (Frame, Argument), ("doc._.frames",)
    formats: ClassVar = {
        **{suffix: TABLES[suffix] for suffix in (".jsonl", ".ndjson", ".csv")},
        **dict.fromkeys(_COLUMN_SUFFIXES, read_columns),
    }
    outputs: Mapping[str, str] = {"logits": "BSC"}

    def __init__(self, config: SrlConfig, *, backbone: BackboneInfo) -> None:
        super().__init__(config, backbone=backbone)
        classes = len(config.tags)
        auto = "AutoModelForTokenClassification"  # for its layers alone: its checkpoints do not say how predicates are marked
        self.layers = HuggingFaceLayers(auto, backbone, classes=classes, shapes=self.outputs)
        before, behind = config.markers.split()
        self._markers = (before, behind)
        self._decoder = TagDecoder(config.tags, _SCHEME)
        self._class_of = {tag: index for index, tag in enumerate(config.tags)}
        self._predicate = self._class_of[f"B-{PREDICATE}"]
        self._roles = {tag.partition("-")[2] for tag in config.tags if tag != "O"}
        self._forms = frozenset(config.forms)

    @classmethod
    def configure(cls, rows: Sequence[Row], given: Mapping[str, Any]) -> SrlConfig:
        options = SrlConfig(**parse_options(SrlConfig, given, where="srl"))
        gold = each(gold_of, rows)
        roles = sorted({role for one in gold for _, _, role in one.roles})
        if not roles:
            problem = "and the rows after it have no predicate at all"
            raise DataError(rows[0].where, problem, "write B-V at the predicate, or check --columns")
        tags = tag_set(roles, _SCHEME)
        forms = {one.tokens[one.predicate].lower() for one in gold if one.roles}
        return replace(options, tags=tags, forms=tuple(sorted(forms)), weights=_weights(options, tags, gold))

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(sorted(self._roles - {PREDICATE}))

    def read(self, row: Row) -> SrlExample:
        if "tags" in row.fields:
            return self._read_gold(row)
        if _has_words(row):
            text, places = join_words(list_field(row, "tokens"))
            source, own = close_unspaced(text, places)
            parts = [(0, len(places))]
        else:
            text = source = text_field(row)
            places = own = words(text)
            parts = sentences(text, places)
        named = named_words(row, len(places))
        marked = self._candidates(text, places) if named is None else named
        sentence_of = {number: part for part in parts for number in range(*part)}
        clauses = tuple(clause_of(source, own, around(sentence_of[at], at), at, self._markers) for at in marked)
        return SrlExample(text, places, clauses, named is not None, None, np.zeros(0, np.int64))

    def _read_gold(self, row: Row) -> SrlExample:
        gold = gold_of(row)
        known = self._roles
        for start, _, role in gold.roles:
            if role not in known:
                problem = f"role {quote(role)} is not in the training data"
                raise DataError(row.line(start), problem, did_you_mean(role, known))
        text, places = join_words(gold.tokens)
        source, own = close_unspaced(text, places)
        clause = clause_of(source, own, (0, len(places)), gold.predicate, self._markers)
        tags = tags_of(gold.roles, len(places), _SCHEME)
        classes = np.array([self._class_of[tag] for tag in tags], dtype=np.int64)  # [W]
        return SrlExample(text, places, (clause,), True, tuple(gold.roles), classes)

    def _candidates(self, text: str, places: Sequence[Place]) -> list[int]:
        """The words that were a predicate somewhere in the training data."""
        return [number for number, (start, end) in enumerate(places) if text[start:end].lower() in self._forms]

    def gold(self, example: SrlExample) -> tuple[LabelledSpan, ...] | None:
        return example.gold

    def gold_labels(self, example: SrlExample) -> list[str]:
        return [role for _, _, role in example.gold or () if role != PREDICATE]

    def sources(self, example: SrlExample) -> list[Source]:
        return [Source(clause.source) for clause in example.clauses]

    def features(self, example: SrlExample, window: Window) -> dict[str, Ints]:
        [clause] = example.clauses
        return {"labels": word_labels(clause, example.classes, window)}

    def forward(self, states: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = self.layers(states, batch["mask"])  # [B,S,C]
        return outputs

    def loss(self, states: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        logits = self.forward(states, batch)["logits"].float()  # [B,S,C]
        return cross_entropy(logits, batch["labels"], weights=self.config.weights)

    def warnings(self, examples: Sequence[SrlExample], windows: Sequence[Sequence[Window]]) -> list[str]:
        if any(not example.gold for example in examples):
            return []
        return [
            "no row of train has a word that is no predicate (all tags O), so words of a text that ever were predicates will "
            "always be taken for some"
        ]

    def calibrate(self, readings: Iterable[Reading]) -> SrlConfig:
        all_classes, all_logits = [np.zeros(0, np.int64)], [np.zeros((0, len(self.config.tags)), np.float32)]
        for reading in readings:
            for clause, (windows, outputs) in _read(reading.example, reading.windows, reading.outputs):
                read, logits = word_logits(clause, windows, outputs)  # [W'], [W',C]
                all_classes.append(reading.example.classes[read])
                all_logits.append(logits)
        classes, scores = np.concatenate(all_classes), np.concatenate(all_logits)  # of all words

        def surprise(temperature: float) -> float:
            return -float(log_softmax(scores, temperature)[np.arange(len(classes)), classes].sum(dtype=np.float64))

        return replace(self.config, temperature=fit_temperature(surprise))

    def scored(self, example: SrlExample, result: list[Frame]) -> list[tuple[float, bool]]:
        gold = set(example.gold or ())
        found = [(frame.score, bool(gold)) for frame in result]
        return found + [
            (argument.score, span in gold)
            for frame in result
            for argument, span in zip(frame.arguments, _in_words(example, [frame]), strict=True)
            if gold
        ]

    def decode(self, example: SrlExample, windows: Sequence[Window], outputs: Sequence[Outputs]) -> list[Frame]:
        frames = [self._frame(example, clause, *own) for clause, own in _read(example, windows, outputs)]
        return [frame for frame in frames if frame is not None]

    def _frame(
        self, example: SrlExample, clause: Clause, windows: Sequence[Window], outputs: Sequence[Outputs]
    ) -> Frame | None:
        """The frame of a marked word; None if it is taken for no predicate, or has no token."""
        read, logits = word_logits(clause, windows, outputs)  # [W'], [W',C]
        if not len(read):
            return None
        log_probs = log_softmax(checked(logits), self.config.temperature)  # [W',C]
        at = int(np.searchsorted(read, clause.at))
        score = float(np.exp(log_probs[at, self._predicate]))
        if not example.named and score < self.config.threshold:
            return None
        path = self._decoder.best(self._with_predicate(log_probs, at))  # [W']
        sure = np.exp(log_probs[np.arange(len(path)), path])  # [W']
        predicate, arguments = (0, 0), []
        for first, behind, role in spans_of([self.config.tags[index] for index in path], _SCHEME):
            one, last = clause.first + int(read[first]), clause.first + int(read[behind - 1])
            start, end = example.words[one][0], example.words[last][1]
            if role == PREDICATE:
                predicate = (start, end)
            else:
                least = float(sure[first:behind].min())
                arguments.append(Argument(example.text[start:end], role, start, end, least))
        return Frame(example.text[slice(*predicate)], *predicate, score, tuple(arguments))

    def _with_predicate(self, log_probs: Floats, at: int) -> Floats:
        """The scores [W',C] by which V begins at this word and at no other."""
        given = log_probs.copy()
        given[:, self._predicate] = -np.inf
        given[at] = -np.inf
        given[at, self._predicate] = 0.0
        return given

    def metrics(self, examples: Sequence[SrlExample], results: Sequence[list[Frame]]) -> dict[str, float]:
        pairs = list(zip(examples, results, strict=True))
        scores = argument_scores(
            [(one.gold, _in_words(one, found), len(one.words)) for one, found in pairs if one.gold]
        )
        if all(one.gold for one in examples):
            return scores
        least = self.config.threshold
        taken = [any(frame.score >= least for frame in found) for _, found in pairs]
        return scores | predicate_scores([bool(one.gold) for one in examples], taken)

    def show(self, example: SrlExample, result: list[Frame]) -> list[tuple[str, str]]:
        if not result:
            return [(example.text, ""), (" no predicates", "")]
        by_start = {example.words[clause.first + clause.at][0]: clause for clause in example.clauses}
        pieces: list[tuple[str, str]] = []
        for frame in result:
            clause = by_start[frame.start]
            at, end = example.words[clause.first][0], example.words[clause.first + len(clause.places) - 1][1]
            marked = [(one.start, one.end, one.role) for one in frame.arguments]
            pieces += [(" | ", "")] if pieces else []
            for start, behind, role in sorted([*marked, (frame.start, frame.end, PREDICATE)]):
                pieces += [(example.text[at:start], ""), (example.text[start:behind], role)]
                at = behind
            pieces.append((example.text[at:end], ""))
        return pieces

    def annotate(self, doc: Any, result: list[Frame], name: str) -> None:
        """``doc._.frames`` has the first such head's frames as plain dicts, which go along when a document is written."""
        if doc._.frames is None:
            doc._.frames = [asdict(frame) | {"arguments": list(map(asdict, frame.arguments))} for frame in result]


def _has_words(row: Row) -> bool:
    """Whether the row gives words; of a row with both, the text is read, unless a word is named by its number.

    Raises:
        DataError: the row has neither.
    """
    if "tokens" not in row.fields and "text" not in row.fields:
        fix = "name the column, for example --columns text=NAME"
        raise DataError(row.where, f"has neither 'tokens' nor 'text', only {listing(row.fields)}", fix)
    is_named = any(row.fields.get(name) is not None for name in ("predicate", "predicates"))
    return "tokens" in row.fields and (is_named or "text" not in row.fields)


def _read(
    example: SrlExample, windows: Sequence[Window], outputs: Sequence[Outputs]
) -> Iterable[tuple[Clause, tuple[list[Window], list[Outputs]]]]:
    """The clauses with their windows and outputs; all have some, or, in a text without tokens, none has."""
    return zip(example.clauses, by_source(windows, outputs), strict=bool(windows))


def _in_words(example: SrlExample, frames: Sequence[Frame]) -> list[LabelledSpan]:
    """The arguments of frames as spans of words."""
    return in_words(example.words, [(one.start, one.end, one.role) for frame in frames for one in frame.arguments])


def _weights(options: SrlConfig, tags: Sequence[str], gold: Sequence[Gold]) -> tuple[float, ...]:
    """The weight of each tag, which is that of its role; empty if all count alike."""
    if options.class_weights == "none":
        return ()
    roles = [tag.partition("-")[2] or "O" for tag in tags]
    counts: Counter[str] = Counter()
    for one in gold:
        for start, end, role in one.roles:
            counts[role] += end - start
        counts["O"] += len(one.tokens) - sum(end - start for start, end, _ in one.roles)
    found = class_weights(options.class_weights, {role: counts[role] for role in roles}, where="srl.class_weights")
    return tuple(found[role] for role in roles)
