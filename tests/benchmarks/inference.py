"""Inference on the CoNLL test sentences, compared with transformers.pipeline("token-classification") at its best batch size.

Both have the same weights and take turns in one process. Also measured: the difference of the logits, F1 on given words, on
plain text and of the other pipeline, and whether ONNX Runtime finds the same entities as PyTorch:

    python tests/benchmarks/inference.py --model runs/ner --data CONLL_FOLDER
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import conll
import numpy as np
import torch
import transformers
from common import keep, summary
from safetensors.torch import load_file

from nlptasks.exporting.sources import StoredSource
from nlptasks.heads.ner import Entity
from nlptasks.inference.scoring import measured
from nlptasks.models.folder import ModelFolder
from nlptasks.pipeline import pipeline
from nlptasks.registry import make_backend
from nlptasks.runtimes.base import ENCODE
from nlptasks.types import ModelInput, Row

_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)


def hugging_face(folder: Path) -> Any:
    """Return the same model in transformers: the backbone with a token classification layer."""
    tags = ModelFolder.open(folder).records["ner"].config["tags"]
    model = transformers.AutoModelForTokenClassification.from_pretrained(
        folder / "backbone",
        num_labels=len(tags),
        id2label=dict(enumerate(tags)),
        label2id={tag: i for i, tag in enumerate(tags)},
    )
    weights = {
        name.removeprefix("layers.model."): tensor
        for name, tensor in load_file(folder / "heads" / "ner.safetensors").items()
    }
    assert not model.load_state_dict(weights, strict=False).unexpected_keys
    return model.eval()


def seconds(work: Callable[[], object]) -> float:
    """Return the duration of a call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def largest_logit_difference(folder: Path, model: Any, texts: list[str]) -> float:
    """Return the largest difference between our logits and those of transformers, over single texts."""
    stored, worst = ModelFolder.open(folder), 0.0
    tokenizer = stored.tokenizer()
    runtime = make_backend("torch").open(StoredSource(stored, ["ner"]), "fp32", "cpu")
    for text in texts:
        [[window]] = tokenizer.windows([ModelInput((text,))])
        arrays = {"ids": window.ids[None], "mask": np.ones_like(window.ids)[None], "types": window.types[None]}
        ours = runtime.fetch(runtime.run(ENCODE, arrays)["ner.logits"])
        with torch.inference_mode():
            theirs = model(
                input_ids=torch.from_numpy(arrays["ids"]), attention_mask=torch.from_numpy(arrays["mask"])
            ).logits
        worst = max(worst, float(np.abs(ours - theirs.numpy()).max()))
    return worst


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    sentences = conll.read(options.data, "test")
    texts = [" ".join(words) for words, _ in sentences]

    ours = pipeline("ner", model=options.model, backend="torch", device="cpu")
    onnx = pipeline("ner", model=options.model, backend="onnx", device="cpu")
    model = hugging_face(options.model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model / "backbone")
    theirs = transformers.pipeline(
        "token-classification", model=model, tokenizer=tokenizer, aggregation_strategy="first"
    )
    sizes = {size: seconds(lambda size=size: theirs(texts[:600], batch_size=size)) for size in _BATCH_SIZES}
    best = min(sizes, key=lambda size: sizes[size])

    pipelines: dict[str, Callable[[], Any]] = {
        "transformers": lambda: theirs(texts, batch_size=best),
        "torch": lambda: ours(texts),
        "onnx": lambda: onnx(texts),
    }
    times: dict[str, list[float]] = {name: [] for name in pipelines}
    for _ in range(options.runs):
        for name, work in pipelines.items():
            times[name].append(seconds(work))

    head = ours.heads["ner"]
    examples = [head.read(row) for row in _rows(sentences)]
    answers = {name: work() for name, work in pipelines.items()}
    found = answers["transformers"]
    answers["transformers"] = [[_entity(text, one) for one in own] for text, own in zip(texts, found, strict=True)]
    answers["torch, given words"] = ours([{"tokens": words} for words, _ in sentences])
    keep(
        "inference",
        {
            "texts": len(texts),
            "transformers_batch_size": best,
            "texts_per_second": {
                name: summary([len(texts) / value for value in values]) for name, values in times.items()
            },
            "times_transformers": {
                name: summary([a / b for a, b in zip(times["transformers"], times[name], strict=True)])
                for name in ("torch", "onnx")
            },
            "f1": {
                name: round(measured(head, zip(examples, found, strict=True)).values["f1"], 4)
                for name, found in answers.items()
            },
            "largest_logit_difference": largest_logit_difference(options.model, model, texts[:300]),
            "onnx_entities_equal": [_places(own) for own in answers["onnx"]]
            == [_places(own) for own in answers["torch"]],
        },
        command="python tests/benchmarks/inference.py --model runs/ner --data CONLL_FOLDER",
    )


def _rows(sentences: list[conll.Sentence]) -> list[Row]:
    return [Row({"tokens": words, "tags": tags}, "test") for words, tags in sentences]


def _entity(text: str, found: dict[str, Any]) -> Entity:
    start, end = found["start"], found["end"]
    return Entity(text[start:end], found["entity_group"], start, end, None)


def _places(entities: list[Entity]) -> list[tuple[str, int, int]]:
    return [(entity.label, entity.start, entity.end) for entity in entities]


if __name__ == "__main__":
    main()
