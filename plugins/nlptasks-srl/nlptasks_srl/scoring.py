"""Metrics: arguments, as the scorer of CoNLL-2005 (``srl-eval.pl``) counts them, and predicates among candidates."""

from __future__ import annotations

from collections.abc import Iterable

from nlptasks import Counts, LabelledSpan, Span, span_counts, span_scores
from nlptasks_srl.columns import PREDICATE

_CONTINUES = "C-"
_GOLD, _PREDICTED, _FOUND = "gold predicates", "predicted predicates", "found predicates"
_CANDIDATES = "candidates"

Joined = tuple[tuple[Span, ...], str]
"""An argument: its parts in order, and its role."""


def joined(spans: Iterable[LabelledSpan]) -> list[Joined]:
    """Join the parts of arguments that are interrupted: ``C-X`` continues the nearest ``X`` before it.

    A ``C-X`` without an ``X`` before it counts as ``X``, as in ``srl-eval.pl``.
    """
    parts: list[tuple[list[Span], str]] = []
    last: dict[str, list[Span]] = {}
    for start, end, role in sorted(spans):
        base = role.removeprefix(_CONTINUES)
        if base != role and base in last:
            last[base].append((start, end))
        else:
            last[base] = [(start, end)]
            parts.append((last[base], base))
    return [(tuple(own), role) for own, role in parts]


def argument_counts(gold: Iterable[LabelledSpan], predicted: Iterable[LabelledSpan]) -> Counts:
    """Count the arguments of one predicate. An argument is found only with the same role and the same parts; V is left out."""
    numbers: dict[tuple[Span, ...], int] = {}

    def numbered(spans: Iterable[LabelledSpan]) -> list[LabelledSpan]:
        """Return a span for each argument; equal parts have equal spans."""
        arguments = [(parts, role) for parts, role in joined(spans) if role != PREDICATE]
        return [(numbers.setdefault(parts, len(numbers)), len(parts), role) for parts, role in arguments]

    return span_counts(numbered(gold), numbered(predicted))


def predicate_counts(*, gold: bool, predicted: bool) -> Counts:
    """Count one candidate for a predicate."""
    return Counts({_CANDIDATES: 1, _GOLD: gold, _PREDICTED: predicted, _FOUND: gold and predicted})


def srl_scores(counts: Counts) -> dict[str, float]:
    """Return precision, recall, F1 and support of arguments, overall and by role.

    If a candidate is no predicate, ``predicate_f1``, ``predicate_precision`` and ``predicate_recall`` say how well predicates are
    told from other candidates.

    Args:
        counts: merged `argument_counts` and `predicate_counts`.
    """
    candidates, gold, predicted, found = (
        float(counts.sums.get(name, 0)) for name in (_CANDIDATES, _GOLD, _PREDICTED, _FOUND)
    )
    scores = span_scores(counts)
    if candidates == gold:
        return scores
    return scores | {
        "predicate_f1": 2 * found / max(1.0, gold + predicted),
        "predicate_precision": found / max(1.0, predicted),
        "predicate_recall": found / max(1.0, gold),
    }
