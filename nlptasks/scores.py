"""Metrics, by the libraries of the field. Every metric is a share in 0..1."""

from __future__ import annotations

from collections.abc import Sequence

from nlptasks.tags import LabelledSpan, tags_of

_SCHEME = "iob2"


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
