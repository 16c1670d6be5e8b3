"""`nlp.pipe` with the component, compared with our bare pipeline and with a `transformers.pipeline` called for each document.

    python tests/benchmarks/spacy_pipe.py --model runs/ner --data CONLL_FOLDER

2,000 test sentences of CoNLL-2003; in turn, `--runs` times. Then resident memory after a number of documents (Linux),
and strings that 100,000 tokens add in a memory zone.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import conll
import spacy
import transformers
from common import keep, summary
from memory import resident_megabytes
from spacy.language import Language
from spacy.tokens import Doc

from nlptasks.models.huggingface import to_hugging_face

_TEXTS = 2000
_MARKS = (10_000, 20_000, 40_000)


@Language.factory("recipe", default_config={"checkpoint": ""})
def recipe(nlp: Language, name: str, checkpoint: str) -> Callable[[Doc], Doc]:
    """The common recipe: a pipeline of transformers, called for each document."""
    pipe: Any = transformers.pipeline("token-classification", model=checkpoint, aggregation_strategy="first")

    def annotate(doc: Doc) -> Doc:
        found = [doc.char_span(one["start"], one["end"], label=one["entity_group"]) for one in pipe(doc.text)]
        doc.ents = [span for span in found if span is not None]
        return doc

    return annotate


def seconds(work: Callable[[], Iterable[Any]]) -> float:
    """How long it takes to get all."""
    started = time.perf_counter()
    for _ in work():
        pass
    return time.perf_counter() - started


def speeds(model: Path, backend: str, texts: list[str], checkpoint: Path, runs: int) -> dict[str, Any]:
    """Texts a second of each way, in turn."""
    nlp, theirs = spacy.blank("en"), spacy.blank("en")
    component: Any = nlp.add_pipe("nlptasks", config={"model": str(model), "backend": backend, "device": "cpu"})
    theirs.add_pipe("recipe", config={"checkpoint": str(checkpoint)})
    bare = component.pipeline  # the very same: two of ONNX Runtime in one process disturb each other
    calls: dict[str, Callable[[], Iterable[Any]]] = {
        "bare": lambda: bare(texts),
        "spacy": lambda: nlp.pipe(texts),
        "recipe": lambda: theirs.pipe(texts),
    }
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(1 + runs):
        for name, work in calls.items():
            taken[name].append(len(texts) / seconds(work))
    found = {name: own[1:] for name, own in taken.items()}  # the first is for warming up
    return {
        "texts_per_second": {name: summary(own) for name, own in found.items()},
        "times_bare": summary([a / b for a, b in zip(found["spacy"], found["bare"], strict=True)]),
        "times_recipe": summary([a / b for a, b in zip(found["spacy"], found["recipe"], strict=True)]),
    }


def memory(model: Path, backend: str, texts: list[str]) -> dict[str, Any]:
    """Resident MiB along a long stream, and the strings that unique tokens add."""
    nlp = spacy.blank("en")
    nlp.add_pipe("nlptasks", config={"model": str(model), "backend": backend, "device": "cpu"})
    stream = nlp.pipe(texts[number % len(texts)] for number in range(_MARKS[-1]))
    resident = {}
    for number, _ in enumerate(stream, start=1):
        if number in _MARKS:
            resident[str(number)] = round(resident_megabytes("self"), 1)
    before = len(nlp.vocab.strings)
    with nlp.memory_zone():
        for number in range(100):
            nlp(" ".join(f"t{number}x{own}" for own in range(1000)))
    return {"resident_megabytes": resident, "strings_added_in_a_memory_zone": len(nlp.vocab.strings) - before}


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--backends", nargs="+", default=["torch", "onnx"])
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    texts = [" ".join(words) for words, _ in conll.read(options.data, "test")][:_TEXTS]
    with tempfile.TemporaryDirectory() as place:
        checkpoint = Path(place) / "checkpoint"
        to_hugging_face(options.model, "ner", output=checkpoint)
        result = {
            backend: {
                **speeds(options.model, backend, texts, checkpoint, options.runs),
                **memory(options.model, backend, texts),
            }
            for backend in options.backends
        }
    keep("spacy", result, command="python tests/benchmarks/spacy_pipe.py --model runs/ner --data CONLL_FOLDER")


if __name__ == "__main__":
    main()
