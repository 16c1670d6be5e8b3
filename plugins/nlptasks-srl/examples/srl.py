"""Train a semantic role labeller on the sample data, use it, export it, and use it on ONNX Runtime.

python examples/srl.py [FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import nlptasks
import nlptasks.pipeline

TEXTS = ["The teacher who sold the old piano gave her pupils a break.", "Nobody watched the open gate yesterday."]


def main(folder: Path) -> None:
    """Train for a few epochs and show what was learned."""
    result = nlptasks.train("srl", output=folder, settings=nlptasks.TrainSettings(epochs=6))
    print(f"test F1 {result.heads['srl'].metrics['test']['f1']:.2f} after 6 epochs at most")
    nlptasks.export(folder)
    for backend in ("torch", "onnx"):
        pipe = nlptasks.pipeline.pipeline("srl", model=folder, backend=backend)
        print(f"{pipe.backend}:")
        for text, frames in zip(TEXTS, pipe(TEXTS), strict=True):
            print(f"  {text}")
            for frame in frames:
                roles = ", ".join(f"{argument.role} {argument.text!r}" for argument in frame.arguments)
                print(f"    {frame.predicate} ({frame.score:.2f}): {roles}")
    named = {"tokens": ["A", "robot", "polished", "the", "floor", "."], "predicates": [2]}
    [frame] = nlptasks.pipeline.pipeline("srl", model=folder)(named)
    print(f"{frame.predicate}: {', '.join(f'{argument.role} {argument.text!r}' for argument in frame.arguments)}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as place:
            main(Path(place) / "srl")
