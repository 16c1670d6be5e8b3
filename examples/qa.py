"""Train question answering on the sample data, and get the three best answers to each question.

python examples/qa.py [FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import nlptasks
import nlptasks.pipeline

CONTEXT = "The lighthouse of Orrel was built by Tilda Marr in 1911. It is 38 metres high and painted green."
QUESTIONS = ["Who built the lighthouse?", "When was it built?", "Who lives there?"]


def main(folder: Path) -> None:
    """Train for a few epochs and show predictions."""
    result = nlptasks.train("qa", output=folder, settings=nlptasks.TrainSettings(epochs=2))
    print(f"test F1 {result.heads['qa'].metrics['test']['f1']:.2f} after 2 epochs")
    pipe = nlptasks.pipeline.pipeline("qa", model=folder, options={"qa": {"top_k": 3}})
    rows = [{"question": question, "context": CONTEXT} for question in QUESTIONS]
    for question, answers in zip(QUESTIONS, pipe(rows), strict=True):
        print(question)
        for answer in answers:
            assert CONTEXT[answer.start : answer.end] == answer.text
            print(f"  {answer.score:.2f}  {answer.text or '(no answer)'}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as place:
            main(Path(place) / "qa")
