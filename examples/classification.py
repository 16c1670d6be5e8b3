"""Train a text classifier on the sample data, use it, and convert it to a Hugging Face checkpoint, which runs as well.

python examples/classification.py [FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import nlptasks
import nlptasks.pipeline
from nlptasks.models.huggingface import to_hugging_face

TEXTS = ["The parcel has been in the same depot for a week.", "Can I get my money back for the lamp?"]


def main(folder: Path) -> None:
    """Train for a few epochs and show predictions."""
    model, checkpoint = folder / "model", folder / "checkpoint"
    result = nlptasks.train("classification", output=model, settings=nlptasks.TrainSettings(epochs=4))
    print(f"test accuracy {result.heads['classification'].metrics['test']['accuracy']:.2f} after at most 4 epochs")
    to_hugging_face(model, "classification", output=checkpoint)
    for place in (model, checkpoint):
        pipe = nlptasks.pipeline.pipeline("classification", model=place)
        print(f"{place.name}:")
        for text, found in zip(TEXTS, pipe(TEXTS), strict=True):
            print(f"  {text}  {found.label} {found.score:.2f}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as place:
            main(Path(place))
