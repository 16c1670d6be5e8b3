"""Summarization: a short text with the content of a long one.

Rows are ``document`` and ``summary``, or two files of parallel lines, ``train.source`` and ``train.target``. A list of summaries
is allowed: the first is learned, and all of them count as gold.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from nlptasks.data.readers import TABLES, pairs_of
from nlptasks.generation.hypotheses import Generated, GeneratedText, best
from nlptasks.heads.base import Schema
from nlptasks.heads.seq2seq import GeneratedTextWriter, Seq2SeqConfig, Seq2SeqExample, Seq2SeqFormat, Seq2SeqHead
from nlptasks.metrics.base import Counts, Metrics
from nlptasks.metrics.generation import rouge_counts, rouge_scores


class SummarizationFormat(Seq2SeqFormat[Seq2SeqConfig]):
    """Checkpoints that summarize."""

    def task_settings(self, tasks: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any]) -> Mapping[str, Any]:
        return tasks.get("summarization", {})


class SummarizationWriter(GeneratedTextWriter):
    """``doc._.summary`` gets the best summary."""

    assigns = ("doc._.summary",)


class SummarizationHead(Seq2SeqHead[Seq2SeqConfig]):
    """Writes a summary of a document."""

    Config = Seq2SeqConfig
    schema = Schema(
        contract=2,
        fields=("document", "text", "summary"),
        gold=("summary",),
        results=(GeneratedText,),
        sample="samples/summarization",
        formats={**TABLES, ".source": pairs_of("document", "summary")},
    )
    hugging_face: ClassVar = SummarizationFormat(Seq2SeqConfig)
    spacy: ClassVar = SummarizationWriter()
    source_field = "document"
    target_field = "summary"

    def count(self, example: Seq2SeqExample, result: Generated) -> Counts:
        return rouge_counts(example.targets, best(result).text)

    def metrics(self, counts: Counts) -> Metrics:
        return Metrics(rouge_scores(counts), main="rougeL")
