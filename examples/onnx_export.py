"""Train a model that finds names, export it in fp32 and int8, each checked in its own metric, and ask both.

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
    """One model, two exports."""
    nlptasks.train("ner", output=folder, settings=nlptasks.TrainSettings(epochs=3))
    for precision in ("fp32", "int8"):
        # "ner" alone is the head's sample; "ner=DATA" would be your data. Without `accept_drift` a
        # change of more than half a point is refused.
        report = nlptasks.export(folder, precision=precision, checks=["ner"], accept_drift=True)
        check = report.checks["ner"]
        print(f"{precision}: {check.metric} {check.torch:.4f} on PyTorch, {check.onnx:.4f} on ONNX Runtime")
        pipe = nlptasks.pipeline.pipeline("ner", model=folder, backend=f"onnx:{precision}")
        print(f"{pipe.backend}: {', '.join(f'{entity.text} ({entity.label})' for entity in pipe(TEXT))}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as place:
            main(Path(place) / "names")
