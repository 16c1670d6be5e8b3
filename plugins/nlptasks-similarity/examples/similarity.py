"""Search texts by meaning without training, then train on the sample pairs and compare.

python examples/similarity.py [FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from nlptasks_similarity import Search

import nlptasks
import nlptasks.pipeline

TEXTS = [
    "The cat sleeps on the warm stove.",
    "Prices have risen by five per cent this year.",
    "He plays the piano every evening.",
    "The train to Lisbon leaves at nine.",
]
PAIR = {"first": "The shop is closed on Sundays.", "second": "On Sundays the shop does not open."}


def main(folder: Path) -> None:
    """Search and score before training and after it."""
    pipe = nlptasks.pipeline.pipeline("similarity", model="minilm")
    index = Search(pipe, TEXTS)
    for query in ("inflation", "rail travel"):
        [hit] = index.search(query, top_k=1)
        print(f"{query}: {hit.score:.2f} {hit.text}")
    print(f"untrained: {pipe(PAIR).score:.2f}")
    metrics = nlptasks.train("similarity", output=folder).heads["similarity"].metrics["test"]
    print(f"test spearman {metrics['spearman']:.2f}, pearson {metrics['pearson']:.2f}")
    print(f"trained: {nlptasks.pipeline.pipeline('similarity', model=folder)(PAIR).score:.2f}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as place:
            main(Path(place) / "similarity")
