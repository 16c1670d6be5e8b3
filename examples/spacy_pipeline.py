"""Run several heads in one spaCy component: entities, categories, and a pipeline on disk.

python examples/spacy_pipeline.py [FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import spacy

import nlptasks

TEXTS = ["Mei Tanaka flew from Oslo to Lisbon.", "A dull and endless evening.", "What a superb ending!"]


def main(folder: Path) -> None:
    """Train two heads, add them to a blank pipeline, and load it again from disk."""
    nlptasks.train(["ner", "sentiment"], output=folder / "model", settings=nlptasks.TrainSettings(epochs=3))
    nlp = spacy.blank("en")
    nlp.add_pipe("nlptasks", config={"model": str(folder / "model")})
    for doc in nlp.pipe(TEXTS):
        entities = [(ent.text, ent.label_, round(ent._.score, 2)) for ent in doc.ents]
        print(doc.text, entities, max(doc.cats, key=lambda label: doc.cats[label]))
    nlp.to_disk(folder / "pipeline")
    again = spacy.load(folder / "pipeline")
    print("from disk:", [ent.text for ent in again(TEXTS[0]).ents])


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as place:
            main(Path(place))
