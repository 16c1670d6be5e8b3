"""Start-up time of ``nlptasks --help`` and ``import nlptasks`` beyond that of Python; medians of new processes.

python tests/benchmarks/startup.py
"""

from __future__ import annotations

import subprocess
import sys
import time

from common import keep, summary

_RUNS = 21
_COMMANDS = {
    "python": [sys.executable, "-c", "pass"],
    "import nlptasks": [sys.executable, "-c", "import nlptasks"],
    "nlptasks --help": [sys.executable, "-m", "nlptasks", "--help"],
    "nlptasks train --help": [sys.executable, "-m", "nlptasks", "train", "--help"],
}


def main() -> None:
    """Measure."""
    times: dict[str, list[float]] = {name: [] for name in _COMMANDS}
    for _ in range(_RUNS):
        for name, command in _COMMANDS.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            times[name].append(time.perf_counter() - started)
    above = {
        name: summary([a - b for a, b in zip(values, times["python"], strict=True)])
        for name, values in times.items()
        if name != "python"
    }
    record = {"seconds": {name: summary(values) for name, values in times.items()}, "seconds_above_python": above}
    keep("startup", record, command="python tests/benchmarks/startup.py")


if __name__ == "__main__":
    main()
