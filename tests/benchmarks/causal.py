"""Heads on decoders: training a small GPT-2 from scratch on real texts, and generation speed against ``generate``.

    python tests/benchmarks/causal.py learning --data FOLDER [--column source]   # perplexity of a small GPT-2
    python tests/benchmarks/causal.py writing [--runs 3]   # a model of GPT-2's size with random weights

It needs the package in plugins/nlptasks-generation.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from common import keep, log_of, summary
from tokenizers import decoders, models, pre_tokenizers, trainers

import nlptasks
from nlptasks.config import TrainSettings
from nlptasks.data.datasets import load_data
from nlptasks.data.readers import TABLES
from nlptasks.pipeline import pipeline

_END = "<|endoftext|>"
_SMALL = {"n_layer": 4, "n_embd": 256, "n_head": 4, "n_positions": 128}
_VOCABULARY = 4000
_NEW, _PROMPTS = 32, 8


def decoder(folder: Path, texts: list[str], *, vocabulary: int, **sizes: int) -> None:
    """Write a GPT-2 with random weights and a byte-level vocabulary trained on texts."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=[_END], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    config = transformers.GPT2Config(vocab_size=vocabulary, bos_token_id=0, eos_token_id=0, pad_token_id=0, **sizes)
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=_END, pad_token=_END)
    fast.save_pretrained(folder)


def learning(place: Path, source: Path, *, column: str, rows: int, epochs: int) -> dict[str, Any]:
    """Train on lines of text, and measure the perplexity of unseen lines on both backends."""
    found_rows = load_data(source, TABLES, {"text": column}).parts
    parts = {part: [row.fields["text"] for row in found_rows[part][:rows]] for part in ("train", "dev", "test")}
    (place / "data").mkdir()
    for part, own in parts.items():
        (place / "data" / f"{part}.txt").write_text("\n".join(own) + "\n", encoding="utf-8")
    decoder(place / "decoder", parts["train"], vocabulary=_VOCABULARY, **_SMALL)
    settings = TrainSettings(backbone=str(place / "decoder"), epochs=epochs, lr=1e-3, precision="fp32", device="cpu")
    nlptasks.train(f"generation={place / 'data'}", output=place / "model", settings=settings)
    nlptasks.export(place / "model")
    log, found = log_of(place / "model"), {}
    for backend in ("torch", "onnx"):
        target = f"generation={place / 'data'}"
        found[backend] = nlptasks.evaluate(place / "model", target, split="test", backend=backend).metrics["perplexity"]
    prompts = [" ".join(text.split()[:3]) for text in parts["test"][:4]]
    pipe = pipeline("generation", model=place / "model", options={"generation": {"max_new_tokens": 24}})
    return {
        "rows": {part: len(own) for part, own in parts.items()},
        "dev_likelihood_by_epoch": [entry["dev"]["generation"] for entry in log["history"]],
        "test_perplexity": found,
        "perplexity_of_a_guess": _VOCABULARY,
        "rows_per_second": log["rows_per_second"],
        "written": {prompt: pipe(prompt).text for prompt in prompts},
    }


def writing(place: Path, *, runs: int) -> dict[str, Any]:
    """Measure greedy search after prompts of different lengths: ours on both backends, ``generate`` in a batch and one by one."""
    words = [
        "the",
        "quick",
        "brown",
        "fox",
        "jumps",
        "over",
        "the",
        "lazy",
        "dog",
        "while",
        "Ada",
        "Smith",
        "saw",
        "London",
        "and",
        "left",
        "Paris",
        "in",
        "the",
        "morning",
    ]
    prompts = [" ".join(words[: 5 + 2 * number]) for number in range(_PROMPTS)]
    decoder(place / "decoder", [*prompts] * 20, vocabulary=50_257, n_layer=12, n_embd=768, n_head=12, n_positions=1024)
    tokenizer = transformers.AutoTokenizer.from_pretrained(place / "decoder", padding_side="left")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(place / "decoder").eval()
    (place / "row.jsonl").write_text(json.dumps({"text": prompts[0]}) + "\n")
    from nlptasks.models.huggingface import import_checkpoint

    import_checkpoint(place / "decoder", task="generation", output=place / "model")
    nlptasks.export(place / "model")
    options = {"generation": {"max_new_tokens": _NEW, "min_new_tokens": _NEW}}
    ways: dict[str, Any] = {}
    for backend in ("torch", "onnx:fp32"):
        pipe = pipeline("generation", model=place / "model", backend=backend, options=options)
        ways[backend] = lambda pipe=pipe: [found.text for found in pipe(prompts)]

    def generate(batch: list[str]) -> list[str]:
        given = tokenizer(batch, return_tensors="pt", padding=True)
        limits = {"max_new_tokens": _NEW, "min_new_tokens": _NEW}
        with torch.inference_mode():
            ids = theirs.generate(**given, **limits, do_sample=False, pad_token_id=0)
        return [tokenizer.decode(row[given.input_ids.shape[1] :], skip_special_tokens=True) for row in ids]

    ways["generate, one batch"] = lambda: generate(prompts)
    ways["generate, one by one"] = lambda: [generate([prompt])[0] for prompt in prompts]
    texts = {name: way() for name, way in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    base, alone = seconds["generate, one batch"], texts["generate, one by one"]
    return {
        "prompts": _PROMPTS,
        "new_tokens": _NEW,
        "seconds": {name: summary(values) for name, values in seconds.items()},
        "times_generate_in_one_batch": {
            name: summary([b / own for b, own in zip(base, values, strict=True)]) for name, values in seconds.items()
        },
        "texts_as_generate_one_by_one": {name: sum(map(str.__eq__, own, alone)) for name, own in texts.items()},
    }


def main() -> None:
    """Run one measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["learning", "writing"])
    parser.add_argument("--data", type=Path, help="folder with train, dev and test")
    parser.add_argument("--column", default="source", help="column of the texts")
    parser.add_argument("--rows", type=int, default=12_000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        if given.what == "learning":
            result = learning(Path(place), given.data, column=given.column, rows=given.rows, epochs=given.epochs)
            command = f"--data {given.data.name} --column {given.column} --rows {given.rows} --epochs {given.epochs}"
        else:
            result = writing(Path(place), runs=given.runs)
            command = f"--runs {given.runs}"
    keep(f"causal_{given.what}", result, command=f"python tests/benchmarks/causal.py {given.what} {command}")


if __name__ == "__main__":
    main()
