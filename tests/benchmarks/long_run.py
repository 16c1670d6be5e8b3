"""Training on all of CoNLL-2003, left alone and killed many times with SIGKILL: both must end with the same weights and metrics.

python tests/benchmarks/long_run.py --data CONLL_FOLDER --kills 10
"""

from __future__ import annotations

import argparse
import hashlib
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import keep, log_of

CHECKPOINT_SECONDS = 15


def command(data: Path, output: Path) -> list[str]:
    """The command that trains, and goes on where it was killed."""
    words = ["train", f"ner={data}", "-o", str(output), "--checkpoint-seconds", str(CHECKPOINT_SECONDS), "--resume"]
    return [sys.executable, "-m", "nlptasks", *words]


def outcome(output: Path) -> dict[str, Any]:
    """The sha256 of the weights, and the metric log."""
    log = log_of(output)
    files = ("backbone/model.safetensors", "heads/ner.safetensors")
    digests = {name: hashlib.sha256((output / name).read_bytes()).hexdigest() for name in files}
    return {
        "sha256": digests,
        "history": log["history"],
        "metrics": {part: own["f1"] for part, own in log["metrics"].items()},
    }


def killed(data: Path, output: Path, kills: int, seed: int) -> list[str]:
    """Train, killed so often: where each life went on."""
    draw = random.Random(seed)
    lives = []
    for _ in range(kills):
        process = subprocess.Popen(command(data, output), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        time.sleep(draw.uniform(25, 55))
        process.kill()
        lives.append(_first_step(process.communicate()[1]))
    end = subprocess.run(command(data, output), check=True, capture_output=True, text=True)
    return [*lives, _first_step(end.stderr)]


def _first_step(notes: str) -> str:
    return next((line for line in notes.splitlines() if line.startswith("goes on")), "begins")


def main() -> None:
    """Train twice."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        alone, cut = Path(folder) / "alone", Path(folder) / "cut"
        subprocess.run(command(given.data, alone), check=True, capture_output=True)
        lives = killed(given.data, cut, given.kills, given.seed)
        one, two = outcome(alone), outcome(cut)
    record = {"kills": given.kills, "lives": lives, "equal": one == two, "alone": one, "killed": two}
    keep("long_run", record, command=f"python tests/benchmarks/long_run.py --data CONLL_FOLDER --kills {given.kills}")


if __name__ == "__main__":
    main()
