"""Tiny runs killed with SIGKILL at random moments, many inside a save, and one ended before every write: what they come to.

python tests/benchmarks/kills.py --kills 200
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import keep

RUNS = Path(__file__).parents[1] / "runs.py"


def ran(*words: str) -> dict[str, Any]:
    """What ``runs.py`` found, and how long it took."""
    started = time.monotonic()
    output = subprocess.run([sys.executable, str(RUNS), *words], check=True, capture_output=True, text=True).stdout
    return {**json.loads(output), "seconds": round(time.monotonic() - started, 1)}


def main() -> None:
    """Kill at random, then at every write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    record = {
        "at_random": ran("kills", "--kills", str(given.kills), "--seed", str(given.seed)),
        "at_writes": ran("crashes"),
    }
    keep("kills", record, command=f"python tests/benchmarks/kills.py --kills {given.kills} --seed {given.seed}")


if __name__ == "__main__":
    main()
