"""Train summarization on the sample data, and summarize a document that is too long for one window.

python examples/summarization.py [FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import nlptasks
import nlptasks.pipeline

DOCUMENT = (
    "On Tuesday the council of Orrel decided to build a museum. The mayor thanked everybody who came. Many people had asked "
    "for it for years. The work will cost 7 million euros and begin in May. An architect from the region drew the plans."
)


def main(folder: Path) -> None:
    """Train for a few epochs, and summarize a short and a long document."""
    target = nlptasks.Target("summarization", "summarization", None, options={"decoder_layers": 2})
    result = nlptasks.train(target, output=folder, settings=nlptasks.TrainSettings(epochs=3))
    print(f"test ROUGE-L {result.heads['summarization'].metrics['test']['rougeL']:.2f}")
    pipe = nlptasks.pipeline.pipeline("summarization", model=folder)
    print(pipe(DOCUMENT))
    print("too long:", pipe(DOCUMENT * 20))  # reads the beginning; the result is marked as truncated
    options = {"summarization": {"long_texts": "windows"}}
    parts = nlptasks.pipeline.pipeline("summarization", model=folder, options=options)
    print("in windows:", parts(DOCUMENT * 20))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as place:
            main(Path(place) / "summarization")
