"""Resident memory of ``nlptasks predict`` after 10,000 and after 100,000 lines on stdin (Linux).

python tests/benchmarks/memory.py --model runs/ner --data CONLL_FOLDER
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

import conll
from common import keep

_MARKS = (10_000, 100_000)
_BEHIND = 3_000
"""Lines after the last mark, so that the process is still running when its memory is read."""


def resident_megabytes(pid: int | str) -> float:
    """Return the resident memory of a process, or of ``self``."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def feed(stdin: IO[str], texts: list[str]) -> None:
    """Write all lines, each different."""
    for number in range(_MARKS[-1] + _BEHIND):
        stdin.write(f"{texts[number % len(texts)]} {number}\n")
    stdin.close()


def measure(model: Path, texts: list[str], backend: str) -> dict[str, float]:
    """Feed lines, and read the memory of the process after a number of results."""
    command = [
        sys.executable,
        "-m",
        "nlptasks",
        "predict",
        str(model),
        "--json",
        "--backend",
        backend,
        "--device",
        "cpu",
    ]
    found = {}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        feeder = threading.Thread(target=feed, args=(process.stdin, texts), daemon=True)
        feeder.start()
        for answered, _ in enumerate(process.stdout, start=1):
            if answered in _MARKS:
                found[str(answered)] = round(resident_megabytes(process.pid), 1)
        feeder.join()
    return found


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--backends", nargs="+", default=["torch", "onnx"])
    options = parser.parse_args()
    texts = [" ".join(words) for words, _ in conll.read(options.data, "test")]
    record = {backend: measure(options.model, texts, backend) for backend in options.backends}
    growth = {backend: round(values[str(_MARKS[1])] - values[str(_MARKS[0])], 1) for backend, values in record.items()}
    keep(
        f"memory_{'_'.join(options.backends)}",
        {"resident_megabytes_after_lines": record, "growth_megabytes": growth},
        command=f"python tests/benchmarks/memory.py --model runs/ner --data CONLL_FOLDER --backends {' '.join(options.backends)}",
    )


if __name__ == "__main__":
    main()
