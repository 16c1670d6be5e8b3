"""Six heads in one model on real data, exported in every precision: does each answer as it does on PyTorch?

    python tests/benchmarks/six_heads.py --data FOLDER_OF_SETS

Names (CoNLL-2003), sentiment (SST-2), topics (TREC), answers (SQuAD), summaries (SciTLDR) and translations (Multi30k) learn
together on `minilm`, briefly: how well they answer is not the question here. Then the model is exported with a check of each
head, and each head's answers are compared with those on PyTorch, row by row: all that is no score must be the same.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import conll
from common import keep
from quality import read, write

import nlptasks
from nlptasks.config import Target
from nlptasks.inference.engine import CHUNK_ITEMS
from nlptasks.inference.scoring import read_gold
from nlptasks.pipeline import pipeline

SETS = {
    "names": ("ner", "conll2003", 1500),
    "mood": ("sentiment", "sst2", 1500),
    "topic": ("classification", "trec", 1500),
    "answer": ("qa", "squad_v1.1", 300),
    "summary": ("summarization", "scitldr", 200),
    "german": ("translation", "multi30k_en_de", 1500),
}
"""By head: its task, its data, and the rows that it learns from."""

_EVALUATED = {"names": 1000, "mood": 872, "topic": 500, "answer": 150, "summary": 40, "german": 150}
_PRECISIONS = ("fp32", "int8", "fp16")


def prepared(data: Path, place: Path) -> dict[str, str]:
    """The rows to learn from and to be measured by, as ``NAME:TASK=FOLDER`` by name."""
    targets = {}
    for name, (task, folder, count) in SETS.items():
        own = place / name
        own.mkdir(parents=True)
        if task == "ner":
            conll.write(own / "train.tsv", conll.read(data / folder, "train")[:count])
            conll.write(own / "dev.tsv", conll.read(data / folder, "dev")[: _EVALUATED[name]])
        else:
            rows = read(data / folder, "train")
            write(own / "train.jsonl", random.Random(0).sample(rows, min(count, len(rows))))
            held = read(data / folder, "dev") or read(data / folder, "test")
            write(own / "dev.jsonl", held[: _EVALUATED[name]])
        targets[name] = f"{name}:{task}={own}"
    return targets


def bare(result: Any) -> Any:
    """A result without its scores."""
    if is_dataclass(result) and not isinstance(result, type):
        return {item.name: bare(getattr(result, item.name)) for item in fields(result)}
    if isinstance(result, dict):
        return {name: bare(value) for name, value in result.items()}
    if isinstance(result, Sequence) and not isinstance(result, str):
        return [bare(value) for value in result]
    return None if isinstance(result, float) else result


def answers(model: Path, head: str, folder: Path, backend: str) -> list[Any]:
    """A head's answers to its rows."""
    pipe = pipeline([head], model=model, backend=backend, device="cpu")
    gold = read_gold(Target(head, head, str(folder)), head, pipe.heads[head], split="dev")
    items = [{head: example} for example in gold.examples]
    return [bare(found[head]) for found in pipe.engine.stream(items, first_chunk=CHUNK_ITEMS)]


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="where the model is kept  [default: nowhere]")
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        rows = Path(place) / "rows"
        targets = prepared(options.data, rows)
        model = options.model or Path(place) / "model"
        if not (model / "nlptasks.json").exists():
            nlptasks.train(
                list(targets.values()),
                output=model,
                settings=nlptasks.TrainSettings(epochs=options.epochs, batch_tokens=1024),
            )
        expected = {name: answers(model, name, rows / name, "torch") for name in SETS}
        result: dict[str, Any] = {"rows": {name: len(own) for name, own in expected.items()}}
        for precision in _PRECISIONS:
            checks = [Target(name, name, str(rows / name)) for name in SETS]
            report = nlptasks.export(model, precision=precision, checks=checks, split="dev", accept_drift=True)
            found = {name: answers(model, name, rows / name, f"onnx:{precision}") for name in SETS}
            result[precision] = {
                "engine": report.engine,
                "max_difference": report.max_difference,
                "agreement": report.agreement,
                "device": report.device,
                "checks": {name: asdict(check) for name, check in report.checks.items()},
                "same_answers": {
                    name: round(sum(a == b for a, b in zip(expected[name], own, strict=True)) / len(own), 4)
                    for name, own in found.items()
                },
            }
    keep("six_heads", result, command="python tests/benchmarks/six_heads.py --data FOLDER_OF_SETS")


if __name__ == "__main__":
    main()
