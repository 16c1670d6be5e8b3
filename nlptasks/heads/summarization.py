"""Summarization: a short text that says what a long one says.

Rows are ``document`` and ``summary``; a list of summaries is taken too, of which the first is learned and all count as right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from nlptasks.fields import texts_field
from nlptasks.generative import GenerativeHead, Writing, best
from nlptasks.textscores import rouge_scores
from nlptasks.types import Row


class SummarizationHead(GenerativeHead):
    """Writes a summary of a document."""

    main_metric = "rougeL"
    fields: ClassVar = ("document", "text", "summary")
    gold_fields: ClassVar = ("summary",)
    source_field = "document"
    target_field = "summary"
    sample = "samples/summarization"

    @classmethod
    def _specific(cls, options: Mapping[str, Any]) -> str:
        return "summarization"

    @classmethod
    def _targets(cls, row: Row) -> tuple[str, ...]:
        return texts_field(row, cls.target_field) if row.fields.get(cls.target_field) is not None else ()

    def metrics(self, examples: Sequence[Writing], results: Sequence[Any]) -> dict[str, float]:
        return rouge_scores([example.targets for example in examples], [best(result).text for result in results])
