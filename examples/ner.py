"""Train named entity recognition on the sample data, export the model, and run it on PyTorch and ONNX Runtime.

python examples/ner.py [FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import nlptasks
import nlptasks.pipeline

TEXTS = ["Mei Tanaka flew from Oslo to Lisbon last Friday.", "Granite Foods hired Rosa Delgado in May 2018."]


def main(folder: Path) -> None:
    """Train for a few epochs and show predictions."""
    result = nlptasks.train("ner", output=folder, settings=nlptasks.TrainSettings(epochs=4))
    print(f"test F1 {result.heads['ner'].metrics['test']['f1']:.2f} after 4 epochs")
    nlptasks.export(folder)
    for backend in ("torch", "onnx"):
        pipe = nlptasks.pipeline.pipeline("ner", model=folder, backend=backend)
        print(f"{pipe.backend}:")
        for text, entities in zip(TEXTS, pipe(TEXTS), strict=True):
            print(f"  {text}")
            for entity in entities:
                print(f"    {entity.label:12} {entity.score:.2f}  {entity.text}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as place:
            main(Path(place) / "ner")
