"""Six heads in one model on real data, exported in every precision and compared with PyTorch.

    python tests/benchmarks/six_heads.py --data FOLDER_OF_SETS

Names (CoNLL-2003), sentiment (SST-2), topics (TREC), answers (SQuAD), summaries (SciTLDR) and translations (Multi30k) are trained
together on `minilm`, briefly, since quality is not measured here. Then the model is exported with a check of each head, and the
results are compared with those on PyTorch, row by row: everything except scores must be equal.
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
from nlptasks.inference.scoring import rows_of
from nlptasks.pipeline import pipeline

SETS = {
    "names": ("ner", "conll2003", 1500),
    "mood": ("sentiment", "sst2", 1500),
    "topic": ("classification", "trec", 1500),
    "answer": ("qa", "squad_v1.1", 300),
    "summary": ("summarization", "scitldr", 200),
    "german": ("translation", "multi30k_en_de", 1500),
}
"""By head: task, data, and number of training rows."""

_EVALUATED = {"names": 1000, "mood": 872, "topic": 500, "answer": 150, "summary": 40, "german": 150}
_PRECISIONS = ("fp32", "int8", "fp16")


def prepared(data: Path, place: Path) -> dict[str, str]:
    """Write the training and dev rows, and return ``NAME:TASK=FOLDER`` by name."""
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
    """Return a result without its scores."""
    if is_dataclass(result) and not isinstance(result, type):
        return {item.name: bare(getattr(result, item.name)) for item in fields(result)}
    if isinstance(result, dict):
        return {name: bare(value) for name, value in result.items()}
    if isinstance(result, Sequence) and not isinstance(result, str):
        return [bare(value) for value in result]
    return None if isinstance(result, float) else result


def answers(model: Path, head: str, folder: Path, backend: str) -> list[Any]:
    """Return a head's results for its dev rows."""
    pipe = pipeline([head], model=model, backend=backend, device="cpu")
    _, rows = rows_of(Target(head, head, str(folder)), pipe.heads[head], "dev")
    return [bare(found.results[head]) for found in pipe.predict(rows, first_chunk=CHUNK_ITEMS)]


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="folder that keeps the model  [default: a temporary one]")
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
