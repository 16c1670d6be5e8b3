"""Two training processes with one thread each against one process with two, on the same global batches, in turn.

python tests/benchmarks/processes.py --data CONLL_FOLDER
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import conll
from common import keep, summary


def per_second(data: Path, output: Path, *, processes: int, tokens: int, precision: str) -> float:
    """Training rows a second, evaluation left out. A step has two batches of so many tokens in any case."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    words = ["train", f"ner={data}", "-o", str(output), "--overwrite", "--epochs", "1", "--batch-tokens", str(tokens)]
    words += ["--precision", precision, "--accumulate", str(2 // processes)]
    threads = {"OMP_NUM_THREADS": str(2 // processes)}
    subprocess.run(
        [sys.executable, *launcher, "-m", "nlptasks", *words], check=True, capture_output=True, env=os.environ | threads
    )
    log = json.loads((output / "training.json").read_text())
    assert (log["processes"], log["threads"]) == (processes, 2 // processes)
    return float(log["rows_per_second"])


def main() -> None:
    """Run both, in turn, for several sizes of batches."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 1024, 2048])
    parser.add_argument("--precision", default="auto")
    given = parser.parse_args()
    found: dict[str, object] = {"rows": given.rows, "precision": given.precision}
    with tempfile.TemporaryDirectory() as folder:
        data, output = Path(folder) / "data", Path(folder) / "model"
        data.mkdir()
        conll.write(data / "train.tsv", conll.read(given.data, "train")[: given.rows])
        conll.write(data / "dev.tsv", conll.read(given.data, "dev")[:50])
        for tokens in given.tokens:
            speeds: dict[int, list[float]] = {1: [], 2: []}
            for _ in range(given.runs):
                for processes, own in speeds.items():
                    own.append(per_second(data, output, processes=processes, tokens=tokens, precision=given.precision))
                    print(tokens, processes, own[-1], file=sys.stderr, flush=True)
            ratios = [two / one for one, two in zip(*speeds.values(), strict=True)]
            found[f"{tokens} tokens"] = {"one": summary(speeds[1]), "two": summary(speeds[2]), "ratio": summary(ratios)}
    keep("processes", found, command="python tests/benchmarks/processes.py --data CONLL_FOLDER")


if __name__ == "__main__":
    main()
