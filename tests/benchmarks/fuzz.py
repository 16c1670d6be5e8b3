"""Mutated files for minutes: is each read or refused by an error of the library's own, in bounded time and memory?

python tests/benchmarks/fuzz.py --seconds 360 --seed 7
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import fuzzing
import tiny
from common import keep
from conftest import TOY_CONLL

import nlptasks
from nlptasks.config import TrainSettings


def make_model(place: Path) -> Path:
    """A tiny model."""
    tiny.make("bert", place / "bert")
    (place / "train.conll").write_text(TOY_CONLL)
    settings = TrainSettings(backbone=str(place / "bert"), epochs=2, lr=3e-3, batch_tokens=128, precision="fp32")
    return nlptasks.train(f"ner={place / 'train.conll'}", output=place / "model", settings=settings).folder


def main() -> None:
    """Run children one after the other: one that dies has found something."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=360)
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        model = make_model(place)
        (place / "scratch").mkdir()
        lines: list[str] = []
        wrong: list[str] = []
        first, ends = 0, time.monotonic() + given.seconds
        while time.monotonic() < ends:
            command = [
                sys.executable,
                fuzzing.__file__,
                str(model),
                str(place / "scratch"),
                str(given.seed),
                str(first),
            ]
            left = str(max(1.0, ends - time.monotonic()))
            done = subprocess.run([*command, left], capture_output=True, text=True)
            found = done.stdout.splitlines()
            _, _, open_case = fuzzing.summary(found)
            if open_case >= 0:
                name = fuzzing.TARGETS[open_case % len(fuzzing.TARGETS)][0]
                wrong.append(f"case {open_case} ({name}): died with {done.returncode}: {done.stderr[-1500:]}")
            elif done.returncode:
                raise SystemExit(done.stderr)
            lines += found
            first = open_case + 1
    counts, more, _ = fuzzing.summary(lines)
    cases = sum(sum(count.values()) for count in counts.values())
    result = {"seed": given.seed, "seconds": given.seconds, "cases": cases, "outcomes": counts, "wrong": wrong + more}
    keep("fuzz", result, command=f"fuzz.py --seconds {given.seconds:.0f} --seed {given.seed}")


if __name__ == "__main__":
    main()
