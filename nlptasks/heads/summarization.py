"""Summarization: a short text that says what a long one says.

Rows are ``document`` and ``summary``, or two files of parallel lines, ``train.source`` and ``train.target``; a list of summaries
is taken too, of which the first is learned and all count as right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from nlptasks.data.readers import TABLES, pairs_of
from nlptasks.heads.seq2seq import GenerativeHead, Writing, best
from nlptasks.metrics.generation import rouge_scores
from nlptasks.types import Reader


class SummarizationHead(GenerativeHead):
    """Writes a summary of a document."""

    contract = 1
    main_metric = "rougeL"
    fields: ClassVar = ("document", "text", "summary")
    gold_fields: ClassVar = ("summary",)
    formats: ClassVar[Mapping[str, Reader]] = {**TABLES, ".source": pairs_of("document", "summary")}
    source_field = "document"
    target_field = "summary"
    sample = "samples/summarization"
    assigns = ("doc._.summary",)

    @classmethod
    def _specific(cls, named: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any]) -> Mapping[str, Any]:
        return named.get("summarization", {})

    def metrics(self, examples: Sequence[Writing], results: Sequence[Any]) -> dict[str, float]:
        return rouge_scores([example.targets for example in examples], [best(result).text for result in results])
