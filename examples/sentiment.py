"""Train sentiment analysis on the sample data, export the model, and show the polarity of some texts on ONNX Runtime.

python examples/sentiment.py [FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import nlptasks
import nlptasks.pipeline

TEXTS = ["A wonderful book.", "The room has two beds and a desk.", "Not bad at all!", "The worst soup I have ever had."]


def main(folder: Path) -> None:
    """Train for a few epochs and show predictions."""
    result = nlptasks.train("sentiment", output=folder, settings=nlptasks.TrainSettings(epochs=4))
    metrics = result.heads["sentiment"].metrics["test"]
    print(f"test accuracy {metrics['accuracy']:.2f}, mean absolute error {metrics['mae']:.2f} of the scale")
    nlptasks.export(folder)
    pipe = nlptasks.pipeline.pipeline("sentiment", model=folder)
    print(f"{pipe.backend}:")
    for text, found in zip(TEXTS, pipe(TEXTS), strict=True):
        print(f"  {found.polarity:+.2f}  {found.label:8} {found.score:.2f}  {text}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as place:
            main(Path(place) / "sentiment")
