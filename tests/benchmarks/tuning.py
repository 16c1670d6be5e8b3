"""What it costs to share: quality, time and own weights of heads that train the backbone, own some of its layers, or none.

Three sets (CoNLL-2003, SST-2, TREC), each with ``--tune all``, ``top:K`` and ``head``, on `minilm` as it
comes; then one model that learns all three together. The same rows, epochs and seed; the defaults for everything else.

    python tests/benchmarks/tuning.py quality --data FOLDER_OF_SETS
    python tests/benchmarks/tuning.py time --data FOLDER_OF_SETS      # on a machine that does nothing else

The second trains on a few rows, in turn, several times, and gives rows a second (steps alone, without evaluation).
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import conll
from common import RESULTS, keep, log_of, summary
from quality import read, write

from nlptasks import TrainSettings, train
from nlptasks.storage.safetensors import read_header

TUNES = ("all", "top:4", "top:3", "top:2", "top:1", "head")
ROWS = {"conll2003": 5000, "sst2": 10000, "trec": 6000}
TASKS = {"conll2003": "ner", "sst2": "sentiment", "trec": "classification"}
_EPOCHS = 3


def lay_out(source: Path, target: Path, most: int) -> Path:
    """A set with at most so many rows of train, drawn once for all runs; what stands for test is test, else dev."""
    target.mkdir(parents=True)
    draw = random.Random(0)
    if source.name == "conll2003":
        for part in ("train", "dev", "test"):
            rows = conll.read(source, part)
            conll.write(target / f"{part}.tsv", draw.sample(rows, min(most, len(rows))) if part == "train" else rows)
        return target
    rows = read(source, "train")
    write(target / "train.jsonl", draw.sample(rows, min(most, len(rows))))
    write(target / "test.jsonl", read(source, "test") or read(source, "dev"))
    return target


def own_weights(model: Path, name: str, tune: str) -> int:
    """Weights that are the head's alone: its file, or, where the backbone was trained for it, the whole model."""
    files = [model / f"heads/{name}.safetensors"] + [model / "backbone/model.safetensors"] * (tune == "all")
    return sum(spec.size for file in files for spec in read_header(file).values())


def trained(targets: Sequence[str], folder: Path, tune: str, epochs: int) -> dict[str, Any]:
    """Train once: metrics, seconds, weights of each head."""
    settings = TrainSettings(tune=tune, epochs=epochs, patience=epochs)
    result = train(targets, output=folder, settings=settings, overwrite=True)
    log = log_of(folder)
    return {
        "seconds": log["seconds"],
        "rows_per_second": log["rows_per_second"],
        "kept_epoch": log["kept_epoch"],
        "heads": {
            name: {
                "metric": head.main_metric,
                **{part: round(metrics[head.main_metric], 4) for part, metrics in head.metrics.items()},
                "own_weights": own_weights(folder, name, tune),
            }
            for name, head in result.heads.items()
        },
    }


def quality(data: Path, tunes: Sequence[str]) -> None:
    """The table; what it has of other runs stays."""
    path = RESULTS / "tuning.json"
    table: dict[str, Any] = json.loads(path.read_text())["runs"] if path.exists() else {}
    with tempfile.TemporaryDirectory() as place:
        sets = {name: lay_out(data / name, Path(place) / name, most) for name, most in ROWS.items()}
        targets = {name: f"{name.partition('2')[0]}:{TASKS[name]}={folder}" for name, folder in sets.items()}
        for tune in tunes:
            for name, target in targets.items():
                table[f"{name} {tune}"] = trained([target], Path(place) / "model", tune, _EPOCHS)
                keep("tuning", {"epochs": _EPOCHS, "rows": ROWS, "runs": table}, command=_COMMAND.format("quality"))
        if "all" in tunes:
            table["joint all"] = trained(list(targets.values()), Path(place) / "model", "all", _EPOCHS)
            keep("tuning", {"epochs": _EPOCHS, "rows": ROWS, "runs": table}, command=_COMMAND.format("quality"))


def time(data: Path, runs: int) -> None:
    """Rows a second of training steps, in turn."""
    found: dict[str, dict[str, list[float]]] = {name: {tune: [] for tune in TUNES} for name in ROWS}
    with tempfile.TemporaryDirectory() as place:
        sets = {name: lay_out(data / name, Path(place) / name, 600) for name in ROWS}
        for name, folder in sets.items():  # dev and test are not what is measured
            for path in folder.glob("test.*"):
                path.unlink()
            for path in folder.glob("dev.*"):
                conll.write(path, conll.read(data / name, "dev")[:20])
        for _ in range(runs):
            for name, folder in sets.items():
                for tune in TUNES:
                    one = trained([f"{TASKS[name]}={folder}"], Path(place) / "model", tune, 1)
                    found[name][tune].append(one["rows_per_second"])
    result = {
        name: {
            tune: {
                **summary(values),
                "times_all": summary([a / b for a, b in zip(values, own["all"], strict=True)])["median"],
            }
            for tune, values in own.items()
        }
        for name, own in found.items()
    }
    keep("tuning_time", {"rows": 600, "rows_per_second": result}, command=_COMMAND.format("time"))


_COMMAND = "python tests/benchmarks/tuning.py {} --data FOLDER_OF_SETS"


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["quality", "time"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--tunes", nargs="+", default=TUNES, help="of the quality: what to train, all unless given")
    options = parser.parse_args()
    if options.what == "quality":
        quality(options.data, options.tunes)
    else:
        time(options.data, options.runs)


if __name__ == "__main__":
    main()
