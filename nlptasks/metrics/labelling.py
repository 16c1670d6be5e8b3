"""Metrics, by the libraries of the field. Every metric is a share in 0..1 (Matthews' correlation is in -1..1).

The libraries are imported where they are used: they are heavy, and who only predicts needs none of them.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from nlptasks.text.tags import LabelledSpan, tags_of
from nlptasks.text.words import is_mostly_unspaced, split_unspaced

_SCHEME = "iob2"
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ENOUGH = 10
"""Gold rows of a label by which its own threshold can be chosen."""


def span_scores(
    gold: Sequence[Sequence[LabelledSpan]], predicted: Sequence[Sequence[LabelledSpan]], lengths: Sequence[int]
) -> dict[str, float]:
    """Precision, recall, F1 and support of labelled spans, overall (micro) and per label, by seqeval in strict mode.

    A span counts as found only with the same label and both edges.

    Args:
        gold: the right spans of each sentence.
        predicted: the found ones.
        lengths: words in each sentence.

    Returns:
        ``f1``, ``precision``, ``recall``, ``support``, and the same as ``LABEL.f1`` ... for each gold or predicted label.
    """
    from seqeval.metrics import classification_report  # its build is fragile: only who scores spans needs it
    from seqeval.scheme import IOB2

    labels = sorted({label for sentence in (*gold, *predicted) for _, _, label in sentence})
    if not labels:
        return {"f1": 0.0, "precision": 0.0, "recall": 0.0, "support": 0.0}
    # seqeval strips dashes off a label's ends and reads prefixes off its letters, so it is given numbers for labels.
    number = {label: str(index) for index, label in enumerate(labels)}

    def written(sentences: Sequence[Sequence[LabelledSpan]]) -> list[list[str]]:
        return [
            tags_of([(start, end, number[label]) for start, end, label in spans], length, _SCHEME)
            for spans, length in zip(sentences, lengths, strict=True)
        ]

    report = classification_report(
        written(gold), written(predicted), mode="strict", scheme=IOB2, output_dict=True, zero_division=0
    )
    overall = _row(report["micro avg"])
    return overall | {
        f"{label}.{key}": value for label in labels for key, value in _row(report.get(number[label], {})).items()
    }


def _row(values: dict[str, float]) -> dict[str, float]:
    named = {"f1": "f1-score", "precision": "precision", "recall": "recall", "support": "support"}
    return {ours: float(values.get(theirs, 0.0)) for ours, theirs in named.items()}


def label_scores(gold: Sequence[str], predicted: Sequence[str | None], labels: Sequence[str]) -> dict[str, float]:
    """Scores of one label for each row, by scikit-learn.

    Args:
        gold: the right labels.
        predicted: the found ones; None is always wrong.
        labels: all that there are.

    Returns:
        ``accuracy``; ``macro_f1``, ``micro_f1`` and ``weighted_f1`` over the labels that occur; ``mcc``, Matthews' correlation;
        ``support``, the number of rows; and ``LABEL.f1``, ``.precision``, ``.recall`` and ``.support``.
    """
    from sklearn.metrics import accuracy_score, matthews_corrcoef

    number = {label: index for index, label in enumerate(labels)}
    right = np.array([number[label] for label in gold])
    found = np.array([-1 if label is None else number[label] for label in predicted])
    overall = {"accuracy": float(accuracy_score(right, found))}
    overall |= _averages(right, found, sorted({*right.tolist(), *found.tolist()} - {-1}), labels)
    mcc = float(matthews_corrcoef(right, found)) if len({*right.tolist(), *found.tolist()}) > 1 else 0.0
    return overall | {"mcc": mcc, **_by_label(right, found, labels)}


def label_set_scores(
    gold: Sequence[Collection[str]],
    predicted: Sequence[Collection[str]],
    probabilities: Sequence[Sequence[float]],
    labels: Sequence[str],
) -> dict[str, float]:
    """Scores of any number of labels for each row, by scikit-learn.

    Args:
        gold: the right labels of each row.
        predicted: the found ones.
        probabilities: of every label, in the order of `labels` [N,C].
        labels: all that there are [C].

    Returns:
        ``micro_f1``, ``macro_f1`` and ``weighted_f1`` over the labels that occur; ``accuracy``, the share of rows with exactly
        the right labels; ``average_precision``, the mean of that of the labels that occur in gold; ``support``; and for each
        label the same, as ``LABEL.f1``.
    """
    from sklearn.metrics import accuracy_score, average_precision_score

    right, found = (
        np.array([[label in row for label in labels] for row in rows], dtype=int) for rows in (gold, predicted)
    )
    if len(labels) == 1:  # scikit-learn takes one column for two classes, not for one label
        right, found = (np.pad(one, ((0, 0), (0, 1))) for one in (right, found))
    scores = np.array(probabilities)  # [N,C]
    present = [index for index in range(len(labels)) if right[:, index].any()]
    precisions = {index: float(average_precision_score(right[:, index], scores[:, index])) for index in present}
    occurring = [index for index in range(len(labels)) if right[:, index].any() or found[:, index].any()]
    return {
        **_averages(right, found, occurring, labels),
        "accuracy": float(accuracy_score(right, found)),
        "average_precision": float(np.mean(list(precisions.values()))) if precisions else 0.0,
        **_by_label(right, found, labels),
        **{f"{labels[index]}.average_precision": value for index, value in precisions.items()},
    }


def _averages(right: Any, found: Any, occurring: Sequence[int], labels: Sequence[str]) -> dict[str, float]:
    from sklearn.metrics import f1_score

    ways = ("macro", "micro", "weighted")
    averages = {
        f"{way}_f1": float(f1_score(right, found, labels=occurring, average=way, zero_division=0)) if occurring else 0.0
        for way in ways
    }
    return {**averages, "support": float(len(right))}


def _by_label(right: Any, found: Any, labels: Sequence[str]) -> dict[str, float]:
    from sklearn.metrics import precision_recall_fscore_support

    names = ("precision", "recall", "f1", "support")
    columns = precision_recall_fscore_support(right, found, labels=range(len(labels)), zero_division=0)
    return {
        f"{label}.{name}": float(column[index])
        for index, label in enumerate(labels)
        for name, column in zip(names, columns, strict=True)
    }


def best_thresholds(probabilities: Any, right: Any) -> tuple[float, ...]:
    """The threshold of each label at which its F1 is highest; that of all labels together for a label with few gold rows.

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
    """Half-way between the last probability that is to reach it and the next one, where F1 is highest; else one half."""
    if not right.any():
        return 0.5
    order = np.argsort(-probabilities, kind="stable")
    ranked = probabilities[order]
    given = np.arange(1, len(order) + 1)
    f1 = 2 * np.cumsum(right[order]) / (given + right.sum())
    f1[:-1][ranked[:-1] == ranked[1:]] = -1.0  # equal ones are given together
    last = int(f1.argmax())
    return float(ranked[last] + ranked[min(last + 1, len(ranked) - 1)]) / 2


def answer_scores(gold: Sequence[Sequence[str]], predicted: Sequence[str], contexts: Sequence[str]) -> dict[str, float]:
    """Exact match and F1 of answers, as SQuAD's official script computes them, as shares.

    Both compare lower-cased words without articles and punctuation, with the gold answer that fits best. In a context that is
    mostly in a script without spaces, every character of such a script is a word.

    Args:
        gold: the right answers of each question; none if it has no answer.
        predicted: the found answer, empty for none.
        contexts: what each question is about.

    Returns:
        ``f1``, ``exact_match`` and ``support``; with questions without answer also ``answerable.f1``, ``unanswerable.f1`` ...
    """
    rows = [
        (bool(own), float(exact_match(own, found, context)), _answer_f1(own, found, context))
        for own, found, context in zip(gold, predicted, contexts, strict=True)
    ]
    groups = {"": rows}
    if not all(answerable for answerable, _, _ in rows):
        groups["answerable."] = [row for row in rows if row[0]]
        groups["unanswerable."] = [row for row in rows if not row[0]]
    return {
        f"{prefix}{name}": value
        for prefix, own in groups.items()
        if own
        for name, value in (
            ("f1", float(np.mean([f1 for _, _, f1 in own]))),
            ("exact_match", float(np.mean([match for _, match, _ in own]))),
            ("support", float(len(own))),
        )
    }


def exact_match(gold: Sequence[str], predicted: str, context: str) -> bool:
    """Whether an answer is a gold answer but for articles, punctuation, case and white space."""
    found = _answer_words(predicted, context)
    return any(_answer_words(answer, context) == found for answer in gold or [""])


def _answer_f1(gold: Sequence[str], predicted: str, context: str) -> float:
    found = _answer_words(predicted, context)
    return max(_words_f1(_answer_words(answer, context), found) for answer in gold or [""])


def _words_f1(gold: Sequence[str], found: Sequence[str]) -> float:
    if not gold or not found:
        return float(gold == found)
    return 2 * (Counter(gold) & Counter(found)).total() / (len(gold) + len(found))


def _answer_words(answer: str, context: str) -> list[str]:
    plain = _ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION))
    return split_unspaced(plain).split() if is_mostly_unspaced(context) else plain.split()
