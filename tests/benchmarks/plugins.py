"""A head in a foreign package against the built-in one, and how long many installed packages take to be listed.

The foreign head is a copy of the built-in NER head under another name. Both are trained on the same rows with the same seed, and
run in turn on the same sentences. The packages are 50 more such copies, which are listed, and must not be imported.

    python tests/benchmarks/plugins.py --data CONLL_FOLDER
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import keep, summary

import nlptasks
from nlptasks.config import TrainSettings
from nlptasks.data.datasets import load_data
from nlptasks.pipeline import Pipeline, pipeline
from nlptasks.registry import head_class

_RUNS, _PACKAGES = 7, 50


def install(place: Path, module: str, task: str, *, code: str) -> None:
    """Write a package with one head as an installer would."""
    source = Path(nlptasks.__file__).parent
    (place / module).mkdir()
    (place / module / "__init__.py").write_text(code)
    (place / module / "samples").symlink_to(source / "samples")
    info = place / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[nlptasks.heads]\n{task} = {module}:NerHead\n")


def timed(work: Callable[[], Any]) -> float:
    """Seconds."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def compared(place: Path, data: Path, rows: int) -> dict[str, Any]:
    """The built-in head and its foreign copy, in turn: training on some rows, and running on sentences."""
    parts = load_data(data, head_class("ner").formats, {}).parts
    sentences = [" ".join(row.fields["tokens"]) for row in parts["test"][:rows]]
    (place / "data").mkdir()
    for part in ("train", "dev"):
        pairs = [zip(row.fields["tokens"], row.fields["tags"], strict=True) for row in parts[part][:rows]]
        text = "\n\n".join("\n".join(f"{token}\t{tag}" for token, tag in own) for own in pairs)
        (place / "data" / f"{part}.conll").write_text(text + "\n")
    settings = TrainSettings(epochs=1, precision="fp32", device="cpu")
    seconds: dict[str, dict[str, list[float]]] = {what: {"ner": [], "foreign": []} for what in ("train", "run")}
    pipes: dict[str, Pipeline] = {}
    for task in ("ner", "foreign"):
        folder = place / task
        took = timed(lambda: nlptasks.train(f"{task}={place / 'data'}", output=folder, settings=settings))  # noqa: B023
        seconds["train"][task].append(took)
        pipes[task] = pipeline(task, model=folder, backend="torch")
        pipes[task](sentences[:50])
    same = [vars(one) for own in pipes["ner"](sentences) for one in own] == [
        vars(one) for own in pipes["foreign"](sentences) for one in own
    ]
    for _ in range(_RUNS):
        for task, pipe in pipes.items():
            seconds["run"][task].append(timed(lambda: pipe(sentences)))  # noqa: B023
    ratios = [foreign / own for own, foreign in zip(seconds["run"]["ner"], seconds["run"]["foreign"], strict=True)]
    return {
        "sentences": len(sentences),
        "same_answers": same,
        "modules": [type(next(iter(pipe.heads.values()))).__module__ for pipe in pipes.values()],
        "seconds": {task: summary(values) for task, values in seconds["run"].items()},
        "train_seconds": seconds["train"],
        "foreign_over_built_in": summary(ratios),
    }


def listed(place: Path) -> dict[str, Any]:
    """Fresh processes that list all tasks, beside Python's own start."""
    line = f"import sys; sys.path.insert(0, {str(place)!r}); sys.argv = ['nlptasks', 'tasks']; "
    line += "from nlptasks.cli.main import main; main(standalone_mode=False); "
    line += "print(sum(name.startswith('many_') for name in sys.modules), 'imported')"
    times: dict[str, list[float]] = {"python": [], "tasks": []}
    said = ""
    for _ in range(_RUNS):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        between = time.perf_counter()
        said = subprocess.run([sys.executable, "-c", line], check=True, capture_output=True, text=True).stdout
        times["python"].append(between - started)
        times["tasks"].append(time.perf_counter() - between)
    *rows, last = said.splitlines()
    return {
        "packages": sum(row.startswith("many-") for row in rows),
        "imported": int(last.split()[0]),
        "seconds": {name: summary(values) for name, values in times.items()},
    }


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of CoNLL-2003")
    parser.add_argument("--rows", type=int, default=1000)
    given = parser.parse_args()
    code = (Path(nlptasks.__file__).parent / "heads" / "ner.py").read_text()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "one").mkdir()
        (place / "many").mkdir()
        install(place / "one", "foreign_ner", "foreign", code=code)
        sys.path.insert(0, str(place / "one"))
        for number in range(_PACKAGES):
            install(place / "many", f"many_{number}", f"many-{number}", code=code)
        result = {"listing": listed(place / "many"), "head": compared(place, given.data, given.rows)}
    keep("plugins", result, command=f"python tests/benchmarks/plugins.py --data CONLL_FOLDER --rows {given.rows}")


if __name__ == "__main__":
    main()
