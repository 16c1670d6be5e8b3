"""Two versions of nlptasks side by side: start-up, memory, speed and quality, each step in turn, as ratios.

    python tests/benchmarks/versions.py --before OLD/bin/python --after NEW/bin/python --data FOLDER_OF_SETS

Each interpreter belongs to an environment with one version. FOLDER_OF_SETS has the sets ``conll2003`` (``train.tsv.gz`` ...),
``sst2``, ``trec`` and ``squad_v1.1`` (``train.jsonl.gz`` ...). CPU time is that of whole processes.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import os
import resource
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import keep, summary

_TEXT = "Mei Tanaka flew from Oslo to Lisbon."
_MEASURED = "f1", "accuracy", "exact_match", "precision", "recall"


@dataclass(frozen=True)
class Set:
    """What is done with a set.

    Attributes:
        task: the task.
        suffix: of its files.
        train: units (sentences or rows) to train on.
        dev: units of dev.
        epochs: passes over them.
    """

    task: str
    suffix: str
    train: int
    dev: int
    epochs: int


SETS = {
    "conll2003": Set("ner", ".tsv", 2500, 1000, 3),
    "sst2": Set("sentiment", ".jsonl", 4000, 872, 2),
    "trec": Set("classification", ".jsonl", 5000, 500, 3),
    "squad_v1.1": Set("qa", ".jsonl", 1500, 300, 1),
}


# The process tells its own peak: the one that the system tells its parent is never below the parent's memory.
_TOLD = """
import atexit, runpy, sys

place, kind, what, *sys.argv[1:] = sys.argv[1:]


def tell():
    with open("/proc/self/status") as status, open(place, "w") as file:
        file.write(next(line.split()[1] for line in status if line.startswith("VmHWM")))


atexit.register(tell)
runpy.run_module(what, run_name="__main__", alter_sys=True) if kind == "-m" else exec(what)
"""


def run(python: str, *words: str) -> tuple[float, float, str]:
    """Run a module or code. Return the CPU seconds, the largest resident memory in MiB, and what was printed."""
    with tempfile.NamedTemporaryFile() as told:
        command = [python, "-c", _TOLD, told.name, *words]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stderr is not None
        out, error = process.stdout.read(), process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise RuntimeError(f"{' '.join(words)}: {error[-2000:]}")
        return usage.ru_utime + usage.ru_stime, int(told.read()) / 1024, out


def part_of(folder: Path, part: str, own: Set, count: int) -> str:
    """Return the first sentences or rows of a part as text."""
    path = next(iter(sorted(folder.glob(f"{part}{own.suffix}*"))))
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8")
    between = "\n\n" if own.suffix == ".tsv" else "\n"
    return between.join(itertools.islice(text.split(between), count)) + "\n"


def data_of(folder: Path, name: str, place: Path) -> Path:
    """Write a small copy of a set."""
    own, target = SETS[name], place / name
    target.mkdir()
    parts = {"train": own.train, "dev": own.dev}
    for part, count in parts.items():
        source = part if any(folder.joinpath(name).glob(f"{part}{own.suffix}*")) else "test"  # TREC has no dev
        (target / f"{part}{own.suffix}").write_text(part_of(folder / name, source, own, count), encoding="utf-8")
    return target


def train_words(data: Path, own: Set, model: Path) -> list[str]:
    """Return the command that trains on a set."""
    words = ["-m", "nlptasks", "train", f"{own.task}={data}", "-o", str(model), "--overwrite"]
    return [*words, "--epochs", str(own.epochs), "--precision", "fp32"]


def quality(pythons: dict[str, str], folder: Path, place: Path, names: Sequence[str]) -> dict[str, Any]:
    """Train and measure each set with both versions."""
    found: dict[str, Any] = {}
    for name in names:
        own, data = SETS[name], data_of(folder, name, place)
        found[name] = {}
        for version, python in pythons.items():
            model = place / f"{name}-{version}"
            seconds, memory, _ = run(python, *train_words(data, own, model))
            log = next(iter(json.loads((model / "training.json").read_text()).values()))
            metrics = {key: value for key, value in log["metrics"]["dev"].items() if key in _MEASURED}
            found[name][version] = {
                "cpu_seconds": round(seconds, 2),
                "megabytes": round(memory),
                "dev": metrics,
                "calibration_error": log["calibration_error"]["dev"],
                "loss": [epoch["loss"] for epoch in log["history"]],
            }
        ratio = found[name]["before"]["cpu_seconds"] / found[name]["after"]["cpu_seconds"]
        found[name]["speed_after_to_before"] = round(ratio, 3)
    return found


def inference(pythons: dict[str, str], place: Path, texts: Path, runs: int) -> dict[str, Any]:
    """Predict many texts with both versions and both backends; the CPU time of a single text is subtracted."""
    found: dict[str, Any] = {}
    for backend in ("torch", "onnx"):
        times: dict[str, list[float]] = {version: [] for version in pythons}
        for _ in range(runs):
            for version, python in pythons.items():
                words = [
                    "-m",
                    "nlptasks",
                    "predict",
                    str(place / f"conll2003-{version}"),
                    "--backend",
                    backend,
                    "--json",
                ]
                alone, _, _ = run(python, *words, _TEXT)
                whole, _, _ = run(python, *words, "--input", str(texts))
                times[version].append(whole - alone)
        ratios = [before / after for before, after in zip(times["before"], times["after"], strict=True)]
        found[backend] = {**{v: summary(own) for v, own in times.items()}, "speed_after_to_before": summary(ratios)}
    return found


def start(pythons: dict[str, str], place: Path, runs: int) -> dict[str, Any]:
    """CPU time and memory of ``nlptasks predict MODEL TEXT``, and memory of the import."""
    found: dict[str, Any] = {version: {} for version in pythons}
    for version, python in pythons.items():
        model = str(place / f"conll2003-{version}")
        commands = {
            "python": ["-c", "pass"],
            "import nlptasks.pipeline": ["-c", "import nlptasks.pipeline"],
            "predict torch": ["-m", "nlptasks", "predict", model, _TEXT, "--backend", "torch"],
            "predict onnx": ["-m", "nlptasks", "predict", model, _TEXT, "--backend", "onnx"],
        }
        for name, words in commands.items():
            measured = [run(python, *words)[:2] for _ in range(runs)]
            found[version][name] = {
                "cpu_seconds": summary([seconds for seconds, _ in measured]),
                "megabytes": summary([memory for _, memory in measured]),
            }
    return found


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", required=True)
    parser.add_argument("--after", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    pythons = {"before": options.before, "after": options.after}
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        result = {"quality": quality(pythons, options.data, place, options.sets)}
        for version, python in pythons.items():
            run(python, "-m", "nlptasks", "export", str(place / f"conll2003-{version}"))
        own = SETS["conll2003"]
        sentences = part_of(options.data / "conll2003", "test", own, 1000).split("\n\n")
        texts = place / "texts.txt"
        lines = (" ".join(line.split("\t")[0].split(" ")[0] for line in one.split("\n") if line) for one in sentences)
        texts.write_text("\n".join(lines) + "\n", encoding="utf-8")
        result["start"] = start(pythons, place, options.runs)
        result["inference"] = inference(pythons, place, texts, options.runs)
    keep(
        "versions", result, command="python tests/benchmarks/versions.py --before OLD --after NEW --data FOLDER_OF_SETS"
    )


if __name__ == "__main__":
    main()
