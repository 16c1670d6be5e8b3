"""Training speed of two processes with one thread each, one process with two threads, and one with one, on equal global batches.

python tests/benchmarks/processes.py --data CONLL_FOLDER
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import conll
from common import keep, log_of, summary

KINDS = {"two processes": (2, 1), "one process, two threads": (1, 2), "one process, one thread": (1, 1)}
"""Number of processes, and threads of each."""


def per_second(data: Path, output: Path, *, kind: str, tokens: int, precision: str) -> float:
    """Return training rows per second without evaluation. A step always has two batches of `tokens` tokens."""
    processes, threads = KINDS[kind]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    words = ["train", f"ner={data}", "-o", str(output), "--overwrite", "--epochs", "1", "--batch-tokens", str(tokens)]
    words += ["--precision", precision, "--accumulate", str(2 // processes)]
    own = os.environ | {"OMP_NUM_THREADS": str(threads)}
    subprocess.run([sys.executable, *launcher, "-m", "nlptasks", *words], check=True, capture_output=True, env=own)
    log = log_of(output)
    assert (log["processes"], log["threads"]) == (processes, threads)
    return float(log["rows_per_second"])


def main() -> None:
    """Run all kinds in turn, for several batch sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--precision", default="auto")
    given = parser.parse_args()
    found: dict[str, object] = {"rows": given.rows, "precision": given.precision}
    with tempfile.TemporaryDirectory() as folder:
        data, output = Path(folder) / "data", Path(folder) / "model"
        data.mkdir()
        conll.write(data / "train.tsv", conll.read(given.data, "train")[: given.rows])
        conll.write(data / "dev.tsv", conll.read(given.data, "dev")[:50])
        for tokens in given.tokens:
            speeds: dict[str, list[float]] = {kind: [] for kind in KINDS}
            for _ in range(given.runs):
                for kind, own in speeds.items():
                    own.append(per_second(data, output, kind=kind, tokens=tokens, precision=given.precision))
                    print(tokens, kind, own[-1], file=sys.stderr, flush=True)
            two, *others = speeds
            ratios = {kind: [a / b for a, b in zip(speeds[two], speeds[kind], strict=True)] for kind in others}
            found[f"{tokens} tokens"] = {
                "rows a second": {kind: summary(own) for kind, own in speeds.items()},
                "two processes against": {kind: summary(own) for kind, own in ratios.items()},
            }
    keep("processes", found, command="python tests/benchmarks/processes.py --data CONLL_FOLDER")


if __name__ == "__main__":
    main()
