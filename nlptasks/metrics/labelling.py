"""Metrics of labels, labelled spans and answers: counts of one example, and scores from merged counts.

Every score is a share in 0..1, except Matthews' correlation, which is in -1..1. seqeval and scikit-learn are imported where they
are used: they are heavy, and predicting does not need them.
"""

from __future__ import annotations

import contextlib
import re
import string
import warnings
from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nlptasks.metrics.base import Counts
from nlptasks.text.tags import LabelledSpan
from nlptasks.text.words import is_mostly_unspaced, split_unspaced
from nlptasks.types import Ints

_GOLD, _PREDICTED, _FOUND = "gold", "predicted", "found"
_EXACT = "exact"
_NO_LABEL = -1
_ANSWERABLE, _UNANSWERABLE = "answerable", "unanswerable"
_ANSWER_SUMS = ("f1", "exact_match", "support")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ENOUGH = 10
"""Gold rows of a label that are needed to choose its own threshold."""


def span_counts(gold: Collection[LabelledSpan], predicted: Collection[LabelledSpan]) -> Counts:
    """Count the labelled spans of one example. A span is found only with the same label and both edges."""
    sums: Counter[Hashable] = Counter()
    for name, spans in ((_GOLD, gold), (_PREDICTED, predicted), (_FOUND, set(gold) & set(predicted))):
        for _, _, label in set(spans):
            sums[name, label] += 1
    return Counts(sums)


def span_scores(counts: Counts) -> dict[str, float]:
    """Return precision, recall, F1 and support of labelled spans, overall (micro) and by label, computed by seqeval.

    Args:
        counts: merged `span_counts`.

    Returns:
        ``f1``, ``precision``, ``recall``, ``support``, and the same as ``LABEL.f1`` ... for each gold or predicted label.
    """
    # The public functions read tags and count anew. This one takes counts.
    from seqeval.metrics.v1 import _precision_recall_fscore_support

    labels = sorted({key[1] for key in counts.sums if isinstance(key, tuple)})
    predicted, found, gold = (
        np.array([counts.sums.get((name, label), 0) for label in labels]) for name in (_PREDICTED, _FOUND, _GOLD)
    )

    def scores(average: str | None) -> Any:
        return _precision_recall_fscore_support(
            [[]], [[]], average=average, zero_division=0, extract_tp_actual_correct=lambda *_: (predicted, found, gold)
        )

    names = ("precision", "recall", "f1", "support")
    values = {name: float(value) for name, value in zip(names, scores("micro"), strict=True)}
    for name, column in zip(names, scores(None), strict=True):
        values |= {f"{label}.{name}": float(value) for label, value in zip(labels, column, strict=True)}
    return values


def label_counts(gold: str, predicted: str | None) -> Counts:
    """Count one example with one gold label; a prediction of None is always wrong."""
    return Counts({(gold, predicted): 1})


def label_pairs(counts: Counts) -> dict[tuple[str | None, str | None], float]:
    """Return how often each pair of a gold and a predicted label occurs; None stands for no label.

    Args:
        counts: merged `label_counts` or `label_set_counts`.
    """
    return {(key[0], key[1]): count for key, count in counts.sums.items() if isinstance(key, tuple)}


def label_scores(counts: Counts, labels: Sequence[str]) -> dict[str, float]:
    """Return the scores of one label for each example, computed by scikit-learn.

    Args:
        counts: merged `label_counts`.
        labels: all labels.

    Returns:
        ``accuracy``; ``macro_f1``, ``micro_f1`` and ``weighted_f1`` over the labels that occur; ``mcc``, Matthews' correlation;
        ``support``, the number of examples; and ``LABEL.f1``, ``.precision``, ``.recall`` and ``.support``.
    """
    from sklearn.metrics import accuracy_score, matthews_corrcoef

    cells = _Cells.of(counts, labels)
    with _few_rows():
        accuracy = float(accuracy_score(cells.gold, cells.predicted, sample_weight=cells.counts))
        correlation = 0.0
        if len({*cells.gold.tolist(), *cells.predicted.tolist()}) > 1:
            correlation = float(matthews_corrcoef(cells.gold, cells.predicted, sample_weight=cells.counts))
    return {
        "accuracy": accuracy,
        **_averages(cells),
        "support": float(cells.counts.sum()),
        "mcc": correlation,
        **_by_label(cells, labels),
    }


def label_set_counts(gold: Collection[str], predicted: Collection[str], scores: Mapping[str, float]) -> Counts:
    """Count one example with any number of gold labels.

    Args:
        gold: the right labels.
        predicted: the labels of the result.
        scores: the score of each label, by which examples are ranked; 0 for a label that is missing.
    """
    right, found = set(gold), set(predicted)
    sums: Counter[Hashable] = Counter()
    sums[_EXACT] = int(right == found)
    for label in right | found:
        sums[label if label in right else None, label if label in found else None] += 1
    return Counts(sums, ((frozenset(right), scores),))


def label_set_scores(counts: Counts, labels: Sequence[str]) -> dict[str, float]:
    """Return the scores of any number of labels for each example, computed by scikit-learn.

    Args:
        counts: merged `label_set_counts`.
        labels: all labels.

    Returns:
        ``micro_f1``, ``macro_f1`` and ``weighted_f1`` over the labels that occur; ``accuracy``, the share of examples with
        exactly the right labels; ``average_precision``, its mean over the labels that occur in gold; ``support``, the number
        of examples; and ``LABEL.f1``, ``.precision``, ``.recall``, ``.support`` and ``.average_precision``.
    """
    cells = _Cells.of(counts, labels)
    precisions = _average_precisions(counts.rows, labels)
    return {
        **_averages(cells),
        "support": float(len(counts.rows)),
        "accuracy": counts.sums[_EXACT] / len(counts.rows),
        "average_precision": float(np.mean(list(precisions.values()))) if precisions else 0.0,
        **_by_label(cells, labels),
        **{f"{label}.average_precision": value for label, value in precisions.items()},
    }


@dataclass(frozen=True)
class _Cells:
    """The cells of a confusion matrix that are not empty. scikit-learn gets them as rows with weights.

    Attributes:
        gold: index of the gold label, `_NO_LABEL` if there is none [N].
        predicted: index of the predicted label, `_NO_LABEL` if there is none [N].
        counts: number of examples [N].
    """

    gold: Ints
    predicted: Ints
    counts: npt.NDArray[np.float64]

    @classmethod
    def of(cls, counts: Counts, labels: Sequence[str]) -> _Cells:
        """Return the cells of merged counts."""
        index: dict[str | None, int] = {label: number for number, label in enumerate(labels)}
        index[None] = _NO_LABEL
        pairs = label_pairs(counts) or {(None, None): 1.0}  # scikit-learn needs a row; this one is in no score
        gold = np.array([index[label] for label, _ in pairs], dtype=np.int64)
        predicted = np.array([index[label] for _, label in pairs], dtype=np.int64)
        return cls(gold, predicted, np.array(list(pairs.values()), dtype=np.float64))


@contextlib.contextmanager
def _few_rows() -> Iterator[None]:
    """Silence scikit-learn's warning of few rows: its rows are cells here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The number of unique classes is greater")
        yield


def _averages(cells: _Cells) -> dict[str, float]:
    from sklearn.metrics import f1_score

    occurring = sorted({*cells.gold.tolist(), *cells.predicted.tolist()} - {_NO_LABEL})

    def f1(average: str) -> float:
        values = f1_score(
            cells.gold,
            cells.predicted,
            labels=occurring,
            average=average,
            sample_weight=cells.counts,
            zero_division=0,
        )
        return float(values)

    with _few_rows():
        return {f"{name}_f1": f1(name) if occurring else 0.0 for name in ("macro", "micro", "weighted")}


def _by_label(cells: _Cells, labels: Sequence[str]) -> dict[str, float]:
    from sklearn.metrics import precision_recall_fscore_support

    names = ("precision", "recall", "f1", "support")
    with _few_rows():
        columns = precision_recall_fscore_support(
            cells.gold, cells.predicted, labels=range(len(labels)), sample_weight=cells.counts, zero_division=0
        )
    return {
        f"{label}.{name}": float(column[index])
        for index, label in enumerate(labels)
        for name, column in zip(names, columns, strict=True)
    }


def _average_precisions(
    rows: Sequence[tuple[Collection[str], Mapping[str, float]]], labels: Sequence[str]
) -> dict[str, float]:
    """Return the average precision of each label that occurs in gold."""
    from sklearn.metrics import average_precision_score

    found = {}
    for label in labels:
        right = [label in gold for gold, _ in rows]
        if any(right):
            found[label] = float(average_precision_score(right, [scores.get(label, 0.0) for _, scores in rows]))
    return found


def best_thresholds(probabilities: Any, right: Any) -> tuple[float, ...]:
    """Return the threshold of each label at which its F1 is highest. Labels with few gold rows share one for all labels.

    Args:
        probabilities: of each label [N,C].
        right: 1 where the label is right, else 0 [N,C].
    """
    shared = _best_threshold(probabilities.ravel(), right.ravel())
    return tuple(
        _best_threshold(own, gold) if gold.sum() >= _ENOUGH else shared
        for own, gold in zip(probabilities.T, right.T, strict=True)
    )


def _best_threshold(probabilities: Any, right: Any) -> float:
    """Return a threshold with the highest F1: half-way between two probabilities. One half if nothing is right."""
    if not right.any():
        return 0.5
    order = np.argsort(-probabilities, kind="stable")
    ranked = probabilities[order]
    predicted = np.arange(1, len(order) + 1)
    f1 = 2 * np.cumsum(right[order]) / (predicted + right.sum())  # [N] if the first 1, 2, ... reach the threshold
    f1[:-1][ranked[:-1] == ranked[1:]] = -1.0  # a threshold cannot separate equal ones
    last = int(f1.argmax())
    return float(ranked[last] + ranked[min(last + 1, len(ranked) - 1)]) / 2


def answer_counts(gold: Collection[str], predicted: str, context: str) -> Counts:
    """Score an answer as SQuAD's official script does.

    Lower-cased words without articles and punctuation are compared with the gold answer that fits best. In a context that is
    mostly in a script without spaces, every character of such a script is a word.

    Args:
        gold: the right answers; empty if the question has no answer.
        predicted: the answer of the result; empty for none.
        context: the context of the question.
    """
    group = _ANSWERABLE if gold else _UNANSWERABLE
    values = (answer_f1(gold, predicted, context), float(exact_match(gold, predicted, context)), 1.0)
    return Counts({(group, name): value for name, value in zip(_ANSWER_SUMS, values, strict=True)})


def answer_scores(counts: Counts) -> dict[str, float]:
    """Return exact match and F1 of answers, as shares.

    Args:
        counts: merged `answer_counts`.

    Returns:
        ``f1``, ``exact_match`` and ``support``; if there are questions without answer, also ``answerable.f1``,
        ``unanswerable.f1`` ...
    """
    groups = {
        group: [counts.sums[group, name] for name in _ANSWER_SUMS]
        for group in (_ANSWERABLE, _UNANSWERABLE)
        if (group, "support") in counts.sums
    }
    total = [sum(column) for column in zip(*groups.values(), strict=True)]
    parts = {"": total}
    if _UNANSWERABLE in groups:
        parts |= {f"{group}.": sums for group, sums in groups.items()}
    return {
        f"{prefix}{name}": value
        for prefix, (f1, exact, support) in parts.items()
        for name, value in zip(_ANSWER_SUMS, (f1 / support, exact / support, support), strict=True)
    }


def exact_match(gold: Collection[str], predicted: str, context: str) -> bool:
    """Return True if an answer is a gold answer, apart from articles, punctuation, case and white space."""
    found = _answer_words(predicted, context)
    return any(_answer_words(answer, context) == found for answer in gold or [""])


def answer_f1(gold: Collection[str], predicted: str, context: str) -> float:
    """Return the F1 of an answer's words with those of the gold answer that fits best."""
    found = _answer_words(predicted, context)
    return max(_words_f1(_answer_words(answer, context), found) for answer in gold or [""])


def _words_f1(gold: Sequence[str], found: Sequence[str]) -> float:
    if not gold or not found:
        return float(gold == found)
    return 2 * (Counter(gold) & Counter(found)).total() / (len(gold) + len(found))


def _answer_words(answer: str, context: str) -> list[str]:
    plain = _ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION))
    return split_unspaced(plain).split() if is_mostly_unspaced(context) else plain.split()
