"""Quality of sequence-to-sequence heads: train on a public set with the defaults, then use greedy search and beam search.

    python tests/benchmarks/writing.py --data FOLDER_OF_SETS --set multi30k_en_de --epochs 6

Only the number of epochs is not a default. Translations are measured twice: cased, as `nlptasks evaluate` does it (13a), and
lower-cased, as older papers report it. If rows have ``references``, each of them is a gold summary; the first sentence of each
document is measured as a summary, too.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import keep, log_of
from quality import overall, read, write

import nlptasks
from nlptasks import TrainSettings, train
from nlptasks.heads.seq2seq import Seq2SeqHead
from nlptasks.metrics.base import merge
from nlptasks.metrics.generation import rouge_counts, rouge_scores
from nlptasks.pipeline import pipeline
from nlptasks.types import Row

_BEAMS = 4


@dataclass(frozen=True)
class Task:
    """A task on a set.

    Attributes:
        head: the task.
        parts: the parts that are evaluated.
        options: options of the head.
    """

    head: str
    parts: Sequence[str]
    options: Mapping[str, Any] = field(default_factory=dict)


SETS = {
    "multi30k_en_de": Task(
        "translation",
        ("test", "test_2017"),
        {"source_language": "en", "target_language": "de", "max_new_tokens": 64, "max_target_tokens": 64},
    ),
    "scitldr": Task("summarization", ("test",), {"max_new_tokens": 64, "max_target_tokens": 64}),
}


def rows_of(folder: Path, part: str) -> list[dict[str, Any]]:
    """Return the rows of a part, with all gold summaries."""
    return [{**row, "summary": row["references"]} if "references" in row else row for row in read(folder, part)]


def first_sentences(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return ROUGE of the first sentence of each document."""
    first = [re.split(r"(?<=[.!?])\s", row["document"])[0] for row in rows]
    gold = [row["summary"] if isinstance(row["summary"], list) else [row["summary"]] for row in rows]
    return overall(rouge_scores(merge(map(rouge_counts, gold, first))))


def lower_cased(gold: Sequence[Sequence[str]], found: Sequence[str]) -> dict[str, float]:
    """Return BLEU of lower-cased texts."""
    from sacrebleu.metrics.bleu import BLEU

    return {
        "bleu_lower_cased": round(BLEU(lowercase=True).corpus_score(list(found), [[own[0] for own in gold]]).score, 2)
    }


def measured(model: Path, task: Task, rows: list[dict[str, Any]], beams: int) -> dict[str, float]:
    """Return the metrics of the texts generated for rows."""
    pipe = pipeline(task.head, model=model, options={task.head: {"num_beams": beams}})
    head = pipe.heads[task.head]
    assert isinstance(head, Seq2SeqHead)
    examples = [head.read(Row(row, f"row {number}")) for number, row in enumerate(rows)]
    results = pipe([{head.source_field: row[head.source_field]} for row in rows])
    found = overall(head.metrics(merge(map(head.count, examples, results))).values)
    more = lower_cased([one.targets for one in examples], [one.text for one in results]) if "bleu" in found else {}
    return {**found, **more, "truncated": round(sum(one.truncated for one in results) / len(rows), 4)}


def measure(folder: Path, task: Task, epochs: int | None, model: Path, backbone: str) -> dict[str, Any]:
    """Train on a set and evaluate."""
    with tempfile.TemporaryDirectory() as place:
        for part in ("train", "dev"):
            write(Path(place) / f"{part}.jsonl", rows_of(folder, part))
        target = nlptasks.Target(task.head, task.head, place, options=dict(task.options))
        train(target, output=model, settings=TrainSettings(epochs=epochs, backbone=backbone), overwrite=True)
    log = log_of(model)
    return {
        "rows": log["rows"],
        "epochs": len(log["history"]),
        "seconds": log["seconds"],
        "rows_per_second": log["rows_per_second"],
        "settings": {
            name: log["settings"][name] for name in ("backbone", "lr", "head_lr", "batch_tokens", "precision")
        },
        "options": dict(task.options),
        "history": log["history"],
        "signature": log["signature"],
        "metrics": {
            part: {f"{beams} beams": measured(model, task, rows_of(folder, part), beams) for beams in (1, _BEAMS)}
            for part in task.parts
        },
        **(
            {"first_sentences": first_sentences(rows_of(folder, task.parts[0]))} if task.head == "summarization" else {}
        ),
    }


def main() -> None:
    """Measure one set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--set", choices=SETS, required=True)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--backbone", default="minilm")
    parser.add_argument("--model", type=Path, help="keep the model here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        model = options.model or Path(place) / "model"
        result = measure(options.data / options.set, SETS[options.set], options.epochs, model, options.backbone)
    epochs = f" --epochs {options.epochs}" if options.epochs else ""
    command = f"python tests/benchmarks/writing.py --data FOLDER_OF_SETS --set {options.set}{epochs}"
    keep(f"writing_{options.set}", result, command=command)


if __name__ == "__main__":
    main()
