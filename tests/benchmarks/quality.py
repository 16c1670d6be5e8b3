"""Quality on public sets: train with the defaults but for the epochs, then evaluate, with the calibration error before and after.

    python tests/benchmarks/quality.py --data FOLDER_OF_SETS --set sst2 --epochs 1

FOLDER_OF_SETS has a folder for each set with ``train``, ``dev`` and ``test`` files of JSON Lines, as far as there are any.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import RESULTS, keep, log_of

from nlptasks import TrainSettings, evaluate, train

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Task:
    """What is done with a set.

    Attributes:
        head: the task.
        part: the part that is evaluated in the end.
        most_dev_rows: of dev that are evaluated after each epoch.
    """

    head: str
    part: str
    most_dev_rows: int = 2000


SETS = {
    "sst2": Task("sentiment", "dev"),
    "ag_news": Task("classification", "test"),
    "trec": Task("classification", "test"),
    "chnsenticorp": Task("sentiment", "test"),
    "squad_v1.1": Task("qa", "dev", most_dev_rows=500),
}


def read(folder: Path, part: str) -> Rows:
    """The rows of a part; none if there is no such file."""
    for path in sorted(folder.glob(f"{part}.jsonl*")):
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8")
        return [json.loads(line) for line in text.split("\n") if line]
    return []


def write(path: Path, rows: Rows) -> Path:
    """Rows as JSON Lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def overall(metrics: Any) -> dict[str, float]:
    """The metrics that are not of one label."""
    return {name: round(value, 4) for name, value in metrics.items() if "." not in name}


def measure(folder: Path, task: Task, epochs: int | None, model: Path) -> dict[str, Any]:
    """Train on a set and evaluate."""
    with tempfile.TemporaryDirectory() as place:
        data = Path(place)
        train_rows, dev_rows = read(folder, "train"), read(folder, "dev")
        write(data / "train.jsonl", train_rows)
        if dev_rows:
            write(data / "dev.jsonl", dev_rows[: task.most_dev_rows])
        train(f"{task.head}={data}", output=model, settings=TrainSettings(epochs=epochs), overwrite=True)
        log = log_of(model)
        rows = read(folder, task.part)
        known = {row.get("text") for row in train_rows if "text" in row}
        parts = {
            task.part: rows,
            f"{task.part} without texts of train": [r for r in rows if r.get("text") not in known],
        }
        found = {
            name: overall(evaluate(model, f"{task.head}={write(data / 'rows.jsonl', own)}").metrics)
            for name, own in parts.items()
            if name == task.part or 0 < len(own) < len(rows)
        }
    return {
        "head": task.head,
        "rows": log["rows"],
        "epochs": len(log["history"]),
        "seconds": log["seconds"],
        "rows_per_second": log["rows_per_second"],
        "settings": {name: log["settings"][name] for name in ("lr", "head_lr", "batch_tokens", "precision")},
        "history": log["history"],
        "fitted": log["fitted"],
        "calibration_error": log["calibration_error"],
        "metrics": found,
    }


def main() -> None:
    """Measure one set, and keep it beside the others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--set", choices=SETS, required=True)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--model", type=Path, help="keep the model here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        model = options.model or Path(place) / "model"
        result = measure(options.data / options.set, SETS[options.set], options.epochs, model)
    epochs = f" --epochs {options.epochs}" if options.epochs else ""
    command = f"python tests/benchmarks/quality.py --data FOLDER_OF_SETS --set {options.set}{epochs}"
    keep(f"quality_{options.set}", result, command=command)
    print(RESULTS / f"quality_{options.set}.json")


if __name__ == "__main__":
    main()
