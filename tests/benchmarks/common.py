"""What the measurements share: the machine they ran on, and where results go."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("nlptasks", "torch", "transformers", "tokenizers", "onnxruntime-gpu", "numpy")


def machine() -> dict[str, Any]:
    """Processor, cores and versions."""
    cpu = next(
        (line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")), platform.processor()
    )
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in _PACKAGES},
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Median and all values."""
    return {"median": round(statistics.median(values), 4), "values": [round(value, 4) for value in values]}


def keep(name: str, result: dict[str, Any], *, command: str) -> None:
    """Write a result beside the others, and print it."""
    record = {"command": command, "machine": machine(), **result}
    text = json.dumps(record, indent=1) + "\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(text)
    print(text)


def log_of(model: Path) -> dict[str, Any]:
    """How the only head of a model came to be, or the first of several."""
    log: dict[str, Any] = next(iter(json.loads((model / "training.json").read_text()).values()))
    return log
