"""Train translation on the sample data: an encoder that reads English, and a head with a decoder that writes German.

python examples/translation.py [FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import nlptasks
import nlptasks.pipeline

SENTENCES = ["My sister draws the white horse in summer.", "Does the baker like the old car today?"]


def main(folder: Path) -> None:
    """Train, and translate with beam search."""
    target = nlptasks.Target("translation", "translation", None, options={"target_language": "de", "decoder_layers": 2})
    result = nlptasks.train(target, output=folder, settings=nlptasks.TrainSettings(epochs=4))
    print(f"test BLEU {result.heads['translation'].metrics['test']['bleu']:.1f}")
    pipe = nlptasks.pipeline.pipeline("translation", model=folder, options={"translation": {"num_beams": 4}})
    for sentence, found in zip(SENTENCES, pipe(SENTENCES), strict=True):
        print(f"{sentence}  ->  {found.text}  ({found.score:.2f}{', truncated' if found.truncated else ''})")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as place:
            main(Path(place) / "translation")
