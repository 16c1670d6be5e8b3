"""Train a model with two heads, add a third one that does not change the others, and run all three in one pass.

python examples/many_heads.py [FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import nlptasks
import nlptasks.pipeline

TEXTS = [
    "Mei Tanaka was late again, and nobody at Granite Foods would apologize.",
    "Thank you, Rosa, the parcel is here!",
]


def main(folder: Path) -> None:
    """Train two heads together, and add another one."""
    settings = nlptasks.TrainSettings(epochs=3)
    nlptasks.train(["ner", "sentiment"], output=folder, settings=settings)
    before = nlptasks.pipeline.pipeline(["ner", "sentiment"], model=folder)(TEXTS)
    nlptasks.train("topic:classification", add_to=folder, settings=settings)
    pipe = nlptasks.pipeline.pipeline(model=folder)
    for text, old, found in zip(TEXTS, before, pipe(TEXTS), strict=True):
        assert {name: found[name] for name in old} == old  # exactly the same
        names = ", ".join(f"{entity.text} ({entity.label})" for entity in found["ner"])
        print(f"{text}\n  {names or 'no names'}; {found['sentiment'].label}; {found['topic'].label}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as place:
            main(Path(place) / "many")
