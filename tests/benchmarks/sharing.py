"""Four heads on `minilm` in one pass, compared with the same four one after the other and four ``transformers.pipeline``.

    python tests/benchmarks/sharing.py --data FOLDER_OF_SETS

Heads for names (CoNLL-2003), sentiment (SST-2) and topics (TREC, AG News), trained briefly, since speed does not depend on
quality. Once with ``--tune head``, where all layers are shared, once with ``top:2``, where each head owns two of six layers. The
texts are test sentences of CoNLL-2003. Everything takes turns in one process; the transformers pipelines have the same weights
(`to-hf`) and their best batch sizes. Peak memory is that of a new process that opens the heads and predicts.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import conll
import transformers
from common import keep, summary
from quality import read, write

import nlptasks
from nlptasks.models.huggingface import to_hugging_face
from nlptasks.pipeline import pipeline

HEADS = {"names": "ner", "mood": "sentiment", "question": "classification", "news": "classification"}
SETS = {"names": "conll2003", "mood": "sst2", "question": "trec", "news": "ag_news"}
TUNES = {"frozen": "head", "top2": "top:2"}
_BATCH_SIZES = (1, 4, 8, 16, 32, 64)
_ROWS, _TRIED = 600, 400


def seconds(work: Callable[[], object]) -> float:
    """Return the duration of a call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def trained(data: Path, place: Path, tune: str) -> Path:
    """Train and export a model with the four heads."""
    targets = []
    for name, task in HEADS.items():
        folder = place / "data" / name
        folder.mkdir(parents=True, exist_ok=True)
        if task == "ner":
            conll.write(folder / "train.tsv", conll.read(data / SETS[name], "train")[:_ROWS])
        else:
            write(folder / "train.jsonl", random.Random(0).sample(read(data / SETS[name], "train"), _ROWS))
        targets.append(f"{name}:{task}={folder}")
    settings = nlptasks.TrainSettings(tune=tune, epochs=1)
    nlptasks.train(targets, output=place / tune.replace(":", ""), settings=settings)
    nlptasks.export(place / tune.replace(":", ""))
    return place / tune.replace(":", "")


def others(model: Path, place: Path, texts: list[str]) -> tuple[Callable[[], object], dict[str, int]]:
    """Return a call of four transformers pipelines one after the other, and the best batch size of each."""
    pipes, best = {}, {}
    for name, task in HEADS.items():
        to_hugging_face(model, name, output=place / name)
        if task == "ner":
            pipe: Any = transformers.pipeline(
                "token-classification", model=str(place / name), device="cpu", aggregation_strategy="first"
            )
        else:
            pipe = transformers.pipeline("text-classification", model=str(place / name), device="cpu", top_k=None)
        sizes = {
            size: seconds(lambda pipe=pipe, size=size: pipe(texts[:_TRIED], batch_size=size)) for size in _BATCH_SIZES
        }
        pipes[name], best[name] = pipe, min(sizes, key=sizes.__getitem__)
    return lambda: [pipe(texts, batch_size=best[name]) for name, pipe in pipes.items()], best


def calls_of(models: dict[str, Path], texts: list[str]) -> dict[str, Callable[[], object]]:
    """Return the calls that are timed, by name."""
    calls: dict[str, Callable[[], object]] = {}
    for backend in ("torch", "onnx"):
        for kind, model in models.items():
            every = pipeline(list(HEADS), model=model, backend=backend, device="cpu")
            single = [pipeline(name, model=model, backend=backend, device="cpu") for name in HEADS]
            calls[f"{backend} {kind} one pass"] = lambda every=every: every(texts)
            calls[f"{backend} {kind} one after the other"] = lambda single=single: [pipe(texts) for pipe in single]
            calls[f"{backend} {kind} one head alone"] = lambda single=single: single[1](texts)
    return calls


def peak_megabytes(model: Path, heads: Sequence[str], backend: str) -> dict[str, float]:
    """Return the peak memory of a process that predicts, and the part of it after the imports."""
    command = [sys.executable, __file__, "--peak", str(model), ",".join(heads), backend]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]))


def peak(model: str, heads: str, backend: str) -> None:
    """Run the process of `peak_megabytes`."""
    imports = _high_water()
    pipe = pipeline(heads.split(","), model=model, backend=backend, device="cpu")
    pipe(["Ada Lovelace lived in London and wrote the first program for a machine that was never built."] * 256)
    whole = _high_water()
    print(json.dumps({"peak": round(whole, 1), "after_imports": round(whole - imports, 1)}))


def _high_water() -> float:
    """Return the peak resident memory of this process, in MiB. (`getrusage` would include the parent before `exec`.)"""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024


def ratios(times: dict[str, list[float]], one: str, other: str) -> dict[str, Any]:
    """Return the ratio of two durations, run by run."""
    return summary([a / b for a, b in zip(times[one], times[other], strict=True)])


def measured(options: argparse.Namespace, place: Path) -> dict[str, Any]:
    """Return all measurements."""
    texts = [" ".join(words) for words, _ in conll.read(options.data / "conll2003", "test")][: options.texts]
    models = {kind: trained(options.data, place, tune) for kind, tune in TUNES.items()}
    calls = calls_of(models, texts)
    best = {}
    for kind, model in models.items():
        calls[f"transformers {kind}"], best[kind] = others(model, place / f"hf_{kind}", texts)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(options.runs):
        for name, work in calls.items():
            times[name].append(seconds(work))
    found: dict[str, Any] = {}
    for backend in ("torch", "onnx"):
        for kind in models:
            own = f"{backend} {kind}"
            found[own] = {
                "times_one_after_the_other": ratios(times, f"{own} one after the other", f"{own} one pass"),
                "times_four_transformers": ratios(times, f"transformers {kind}", f"{own} one pass"),
            }
        alone = ratios(times, f"{backend} top2 one head alone", f"{backend} frozen one head alone")
        found[f"{backend} top2"]["one_head_alone_times_a_single_model"] = alone
    memory = {}
    for backend in ("torch", "onnx"):
        one = peak_megabytes(models["frozen"], ["mood"], backend)
        four = {kind: peak_megabytes(model, list(HEADS), backend) for kind, model in models.items()}
        memory[backend] = {
            "one_model": one,
            **{kind: {**own, "times_one_model": round(own["peak"] / one["peak"], 3)} for kind, own in four.items()},
        }
    return {
        "texts": len(texts),
        "transformers_batch_sizes": best,
        "seconds": {name: summary(values) for name, values in times.items()},
        "ratios": found,
        "peak_megabytes": memory,
    }


def main() -> None:
    """Measure."""
    if sys.argv[1:2] == ["--peak"]:
        peak(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        found = measured(options, Path(place))
    keep("sharing", found, command="python tests/benchmarks/sharing.py --data FOLDER_OF_SETS")


if __name__ == "__main__":
    main()
