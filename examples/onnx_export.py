"""Train named entity recognition, export it in fp32 and int8, compare its F1 with PyTorch's, and run both exports.

python examples/onnx_export.py [FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import nlptasks
import nlptasks.pipeline

TEXT = "Mei Tanaka flew from Oslo to Lisbon."


def main(folder: Path) -> None:
    """Export one model twice."""
    nlptasks.train("ner", output=folder, settings=nlptasks.TrainSettings(epochs=3))
    for precision in ("fp32", "int8"):
        # "ner" checks on the head's sample data, "ner=DATA" on your own. Without `accept_drift`, a change of more than half
        # a point is refused.
        report = nlptasks.export(folder, precision=precision, checks=["ner"], accept_drift=True)
        check = report.checks["ner"]
        print(f"{precision}: {check.metric} {check.reference:.4f} on PyTorch, {check.exported:.4f} on ONNX Runtime")
        pipe = nlptasks.pipeline.pipeline("ner", model=folder, backend=f"onnx:{precision}")
        print(f"{pipe.backend}: {', '.join(f'{entity.text} ({entity.label})' for entity in pipe(TEXT))}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as place:
            main(Path(place) / "names")
