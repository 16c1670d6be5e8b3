"""Resident memory of a pipeline on ONNX Runtime, compared with a bare session on the same graph, each in its own process (Linux).

    python tests/benchmarks/resident.py --model runs/ner

Both processes import the same libraries first; then one opens `onnxruntime.InferenceSession`, the other the pipeline.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from common import keep, summary

_CHILD = """
import json, sys
from pathlib import Path
import onnxruntime
import nlptasks.pipeline
from nlptasks.exporting.sources import graph_file
from nlptasks.registry import head_class, tasks
from nlptasks.runtimes.base import ENCODE

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024

kind, model, precision = sys.argv[1:]
for name in tasks():
    head_class(name)
before = resident()
if kind == "session":
    path = Path(model) / "onnx" / precision / graph_file(ENCODE)
    held = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
else:
    held = nlptasks.pipeline.pipeline(model=model, backend=f"onnx:{precision}", device="cpu")
print(json.dumps({"before": before, "after": resident()}))
"""


def measured(kind: str, model: Path, precision: str) -> dict[str, float]:
    """Return resident MiB before and after a model is opened as a ``session`` or a ``pipeline``."""
    command = [sys.executable, "-c", _CHILD, kind, str(model), precision]
    found: dict[str, float] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "int8"])
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    result = {}
    for precision in options.precisions:
        runs = [
            {kind: measured(kind, options.model, precision) for kind in ("session", "pipeline")}
            for _ in range(options.runs)
        ]
        grown = [{kind: own["after"] - own["before"] for kind, own in run.items()} for run in runs]
        result[precision] = {
            "process_megabytes": {
                kind: summary([run[kind]["after"] for run in runs]) for kind in ("session", "pipeline")
            },
            "model_megabytes": {kind: summary([run[kind] for run in grown]) for kind in ("session", "pipeline")},
            "pipeline_times_session": summary([run["pipeline"] / run["session"] for run in grown]),
            "process_times_session": summary([run["pipeline"]["after"] / run["session"]["after"] for run in runs]),
        }
    keep("resident", result, command="python tests/benchmarks/resident.py --model runs/ner")


if __name__ == "__main__":
    main()
