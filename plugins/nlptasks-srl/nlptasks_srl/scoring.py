"""Metrics: spans with their roles, as the scorer of CoNLL-2005 counts them, and predicates among words that look like one."""

from __future__ import annotations

from collections.abc import Sequence

from nlptasks import LabelledSpan, span_scores
from nlptasks_srl.columns import PREDICATE

_NOT_COUNTED = (PREDICATE, f"C-{PREDICATE}")


def argument_scores(rows: Sequence[tuple[Sequence[LabelledSpan], Sequence[LabelledSpan], int]]) -> dict[str, float]:
    """Precision, recall, F1 and support of arguments, overall and per role; the predicate itself is not counted.

    Args:
        rows: for each predicate the right roles, the found ones, and the words in its sentence.

    Returns:
        ``f1``, ``precision``, ``recall``, ``support``, and the same as ``ROLE.f1`` ...
    """
    gold = [[span for span in right if span[2] not in _NOT_COUNTED] for right, _, _ in rows]
    found = [[span for span in answer if span[2] not in _NOT_COUNTED] for _, answer, _ in rows]
    return span_scores(gold, found, [length for _, _, length in rows])


def predicate_scores(gold: Sequence[bool], found: Sequence[bool]) -> dict[str, float]:
    """Precision, recall and F1 of saying of a word that it is a predicate.

    Args:
        gold: whether each word is one.
        found: whether it was taken for one.
    """
    both = sum(right and taken for right, taken in zip(gold, found, strict=True))
    return {
        "predicate_f1": 2 * both / max(1, sum(gold) + sum(found)),
        "predicate_precision": both / max(1, sum(found)),
        "predicate_recall": both / max(1, sum(gold)),
    }
