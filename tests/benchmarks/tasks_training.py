"""Training of text and pair heads: rows a second and quality after one epoch, against plain scripts around Trainer's defaults.

Both train the same backbone on the same rows, in turn, each run in a process of its own. The scripts are those of transformers'
task guides: batches of 8, texts padded to the longest of a batch; for question answering the guide pads to 384 tokens, and
``trainer_dynamic`` does without.

    python tests/benchmarks/tasks_training.py --data FOLDER_OF_SETS --set sst2 --rows 2000
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import keep, log_of, summary
from quality import SETS, read, write

Rows = list[dict[str, Any]]


def rows_of(folder: Path, count: int, dev_count: int, part: str) -> tuple[Rows, Rows]:
    """Rows of train and of the part that is evaluated, drawn once for all runs."""
    draw = random.Random(0)
    train, dev = read(folder, "train"), read(folder, part)
    return draw.sample(train, count), draw.sample(dev, min(dev_count, len(dev)))


def run_nlptasks(name: str, rows: Rows, dev: Rows, seed: int) -> dict[str, float]:
    """One epoch with the library's defaults."""
    from nlptasks import TrainSettings, train

    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        data.mkdir()
        write(data / "train.jsonl", rows)
        write(data / "dev.jsonl", dev)
        settings = TrainSettings(epochs=1, seed=seed)
        result = train(f"{SETS[name].head}={data}", output=Path(folder) / "model", settings=settings)
        log, own = log_of(Path(folder) / "model"), result.heads[SETS[name].head]
    return {"per_second": log["rows_per_second"], "quality": own.metrics["dev"][own.main_metric]}


def run_trainer(name: str, rows: Rows, dev: Rows, seed: int) -> dict[str, float]:
    """One epoch of Hugging Face's Trainer as the guides have it, everything else at its default."""
    return (_answers if SETS[name].head == "qa" else _labels)(rows, dev, seed, padding="max_length")


def run_trainer_dynamic(name: str, rows: Rows, dev: Rows, seed: int) -> dict[str, float]:
    """The same, padded to the longest of a batch wherever the guide does not."""
    return (_answers if SETS[name].head == "qa" else _labels)(rows, dev, seed, padding=False)


def _labels(rows: Rows, dev: Rows, seed: int, *, padding: Any) -> dict[str, float]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(_folder())
    labels = sorted({row["label"] for row in rows})

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        return {**tokenizer(row["text"], truncation=True), "labels": labels.index(row["label"])}

    model = AutoModelForSequenceClassification.from_pretrained(_folder(), num_labels=len(labels))
    seconds, logits = _trained(model, tokenizer, [encode(row) for row in rows], [encode(row) for row in dev], seed)
    right = [labels[scores.argmax()] == row["label"] for scores, row in zip(logits, dev, strict=True)]
    return {"per_second": len(rows) / seconds, "quality": sum(right) / len(right)}


def _answers(rows: Rows, dev: Rows, seed: int, *, padding: Any) -> dict[str, float]:
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    from nlptasks.metrics.labelling import answer_scores

    tokenizer = AutoTokenizer.from_pretrained(_folder())

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        encoded = tokenizer(
            row["question"],
            row["context"],
            max_length=384,
            truncation="only_second",
            padding=padding,
            return_offsets_mapping=True,
        )
        start, text = row["answers"]["answer_start"][0], row["answers"]["text"][0]
        ids, offsets = encoded.sequence_ids(), encoded.pop("offset_mapping")
        inside = [
            index
            for index, (own, (left, right)) in enumerate(zip(ids, offsets, strict=True))
            if own == 1 and right > start and left < start + len(text)
        ]
        first, last = (inside[0], inside[-1]) if inside else (0, 0)
        return {**encoded, "start_positions": first, "end_positions": last}

    model = AutoModelForQuestionAnswering.from_pretrained(_folder())
    seconds, logits = _trained(model, tokenizer, [encode(row) for row in rows], [encode(row) for row in dev], seed)
    found = [best_span(tokenizer, row, start, end) for row, start, end in zip(dev, *logits, strict=True)]
    contexts = [row["context"] for row in dev]
    return {
        "per_second": len(rows) / seconds,
        "quality": answer_scores([row["answers"]["text"] for row in dev], found, contexts)["f1"],
    }


def best_span(tokenizer: Any, row: dict[str, Any], start: Any, end: Any) -> str:
    """The answer as the guides find it: the best of 20 starts and 20 ends, at most 30 tokens long."""
    encoded = tokenizer(
        row["question"], row["context"], max_length=384, truncation="only_second", return_offsets_mapping=True
    )
    ids, offsets = encoded.sequence_ids(), encoded["offset_mapping"]
    n = len(ids)
    best, text = float("-inf"), ""
    for first in start[:n].argsort()[-20:]:
        for last in end[:n].argsort()[-20:]:
            if ids[first] == ids[last] == 1 and first <= last < first + 30 and start[first] + end[last] > best:
                best, text = start[first] + end[last], row["context"][offsets[first][0] : offsets[last][1]]
    return text


def _trained(model: Any, tokenizer: Any, rows: Rows, dev: Rows, seed: int) -> tuple[float, Any]:
    """Seconds of one epoch, and the logits for dev."""
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

    with tempfile.TemporaryDirectory() as output:
        arguments = TrainingArguments(
            output_dir=output, num_train_epochs=1, seed=seed, report_to="none", save_strategy="no", disable_tqdm=True
        )
        collator = DataCollatorWithPadding(tokenizer)
        trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collator)
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
        return seconds, trainer.predict(dev).predictions


def _folder() -> str:
    from nlptasks.backbones.pretrained import embedded_folder

    return str(embedded_folder())


RUNS: dict[str, Callable[..., dict[str, float]]] = {
    "nlptasks": run_nlptasks,
    "trainer": run_trainer,
    "trainer_dynamic": run_trainer_dynamic,
}


def main() -> None:
    """Run all, in turn, for each seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--set", choices=SETS, required=True)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--dev-rows", type=int, default=1000)
    parser.add_argument("--part", default="dev", help="what both are evaluated on after the one epoch")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--one", choices=RUNS)
    options = parser.parse_args()
    if options.one:
        rows, dev = rows_of(options.data / options.set, options.rows, options.dev_rows, options.part)
        print("RESULT", json.dumps(RUNS[options.one](options.set, rows, dev, options.seeds[0])))
        return
    names = list(RUNS) if SETS[options.set].head == "qa" else ["nlptasks", "trainer"]
    results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    given = [
        "--data",
        str(options.data),
        "--set",
        options.set,
        "--rows",
        str(options.rows),
        "--dev-rows",
        str(options.dev_rows),
        "--part",
        options.part,
    ]
    for seed in options.seeds:
        for name, runs in results.items():
            command = [sys.executable, __file__, *given, "--seeds", str(seed), "--one", name]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            runs.append(json.loads(output.rpartition("RESULT ")[2]))
            print(seed, name, runs[-1], file=sys.stderr, flush=True)
    record: dict[str, Any] = {
        "set": options.set,
        "rows": options.rows,
        "evaluated_on": options.part,
        "evaluated_rows": options.dev_rows,
        "epochs": 1,
    }
    for name, runs in results.items():
        record[name] = {key: summary([run[key] for run in runs]) for key in ("per_second", "quality")}
        ratios = [ours["per_second"] / run["per_second"] for ours, run in zip(results["nlptasks"], runs, strict=True)]
        record[name]["nlptasks_is_faster_by"] = summary(ratios)
    sizes = f"--rows {options.rows} --dev-rows {options.dev_rows} --part {options.part}"
    command = f"python tests/benchmarks/tasks_training.py --data FOLDER_OF_SETS --set {options.set} {sizes}"
    keep(f"training_{options.set}", record, command=command)


if __name__ == "__main__":
    main()
