"""Inference of heads that read texts or pairs, compared with transformers: the same weights, in one process, in turn.

Labels: ``transformers.pipeline("text-classification")`` at its best batch size. Answers: transformers has no such pipeline any
more, so a loop over ``AutoModelForQuestionAnswering`` in batches of 32, with the best span of each: padded to 384 tokens as in
transformers' guide, and (``hugging_face_dynamic``) to the longest of a batch. The weights are written by ``to-hf``:

    python tests/benchmarks/tasks_inference.py --model runs/sentiment --head sentiment --rows DEV.jsonl
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from common import keep, summary
from quality import read
from tasks_training import best_span

import nlptasks
from nlptasks.models.folder import ModelFolder
from nlptasks.models.huggingface import to_hugging_face
from nlptasks.pipeline import pipeline

_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
_BATCH = 32


def seconds(work: Callable[[], object]) -> float:
    """Return the duration of a call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


Calls = dict[str, Callable[[], list[str]]]


def label_calls(checkpoint: Path, rows: list[dict[str, Any]]) -> tuple[Calls, dict[str, Any]]:
    """Return a call that labels rows with transformers' pipeline, and its best batch size."""
    texts = [row["text"] for row in rows]
    theirs = transformers.pipeline("text-classification", model=str(checkpoint), device="cpu")
    sizes = {size: seconds(lambda size=size: theirs(texts[:400], batch_size=size)) for size in _BATCH_SIZES}
    best = min(sizes, key=lambda size: sizes[size])
    calls: Calls = {"hugging_face": lambda: [found["label"] for found in theirs(texts, batch_size=best)]}
    return calls, {"transformers_batch_size": best}


def answer_calls(checkpoint: Path, rows: list[dict[str, Any]]) -> tuple[Calls, dict[str, Any]]:
    """Return calls that answer rows with a plain loop."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(checkpoint).eval()

    def answer(padding: bool | str) -> list[str]:
        found = []
        for batch in (rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH)):
            pairs = [row["question"] for row in batch], [row["context"] for row in batch]
            given = tokenizer(*pairs, truncation="only_second", max_length=384, padding=padding, return_tensors="pt")
            with torch.inference_mode():
                outputs = model(**given)
            starts, ends = outputs.start_logits.numpy(), outputs.end_logits.numpy()
            found += [best_span(tokenizer, row, *scores) for row, *scores in zip(batch, starts, ends, strict=True)]
        return found

    calls: Calls = {"hugging_face": lambda: answer("max_length"), "hugging_face_dynamic": lambda: answer(True)}
    return calls, {"batch": _BATCH}


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--head", required=True)
    parser.add_argument("--rows", type=Path, required=True, help="a JSON Lines file")
    parser.add_argument("--most", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--name", required=True, help="name of the result")
    options = parser.parse_args()
    rows = read(options.rows.parent, options.rows.name.partition(".")[0])[: options.most]
    inputs = [{key: row[key] for key in ("text", "question", "context") if key in row} for row in rows]
    if not ModelFolder.open(options.model).exports:
        nlptasks.export(options.model)
    ours = pipeline(options.head, model=options.model, backend="torch", device="cpu")
    onnx = pipeline(options.head, model=options.model, backend="onnx", device="cpu")
    with tempfile.TemporaryDirectory() as place:
        to_hugging_face(options.model, options.head, output=Path(place) / "checkpoint")
        is_pair = "question" in rows[0]
        theirs, details = (answer_calls if is_pair else label_calls)(Path(place) / "checkpoint", rows)

        def texts(found: list[Any]) -> list[str]:
            return [one.text if is_pair else one.label for one in found]

        calls: Calls = {
            **theirs,
            "torch": lambda: texts(ours(inputs)),
            "onnx": lambda: texts(onnx(inputs)),
        }
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(options.runs):
            for name, work in calls.items():
                times[name].append(seconds(work))
        answers = {name: work() for name, work in calls.items()}
    result = {
        "rows": len(rows),
        **details,
        "rows_per_second": {name: summary([len(rows) / value for value in own]) for name, own in times.items()},
        **{
            f"times_{other}": {
                name: summary([a / b for a, b in zip(times[other], times[name], strict=True)])
                for name in ("torch", "onnx")
            }
            for other in theirs
        },
        "same_answers_as_hugging_face": {
            name: round(sum(a == b for a, b in zip(answers["hugging_face"], answers[name], strict=True)) / len(rows), 4)
            for name in ("torch", "onnx")
        },
    }
    command = "python tests/benchmarks/tasks_inference.py --model MODEL --head {} --rows {} --name {}"
    keep(f"inference_{options.name}", result, command=command.format(options.head, options.rows.name, options.name))


if __name__ == "__main__":
    main()
