"""Training: sentences a second and dev F1 of one epoch, against a plain script around Hugging Face's Trainer with its defaults.

Both train the same backbone on the same rows, in turn, each run in a process of its own:

    python tests/benchmarks/training.py --data CONLL_FOLDER
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import conll
from common import keep, log_of, summary


def run_nlptasks(sentences: list[conll.Sentence], dev: list[conll.Sentence], seed: int) -> dict[str, float]:
    """One epoch with the library's defaults."""
    from nlptasks import TrainSettings, train

    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        data.mkdir()
        conll.write(data / "train.tsv", sentences)
        conll.write(data / "dev.tsv", dev)
        train(f"ner={data}", output=Path(folder) / "model", settings=TrainSettings(epochs=1, seed=seed))
        log = log_of(Path(folder) / "model")
    return {"per_second": log["rows_per_second"], "f1": log["metrics"]["dev"]["f1"]}


def run_trainer(sentences: list[conll.Sentence], dev: list[conll.Sentence], seed: int) -> dict[str, float]:
    """One epoch of Hugging Face's Trainer, everything else at its default."""
    from seqeval.metrics import f1_score
    from seqeval.scheme import IOB2
    from transformers import (
        AutoModelForTokenClassification,
        AutoTokenizer,
        DataCollatorForTokenClassification,
        Trainer,
        TrainingArguments,
    )

    from nlptasks.backbones.pretrained import embedded_folder

    folder = str(embedded_folder())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tags = sorted({tag for _, own in sentences for tag in own})

    def encode(sentence: conll.Sentence) -> dict[str, Any]:
        encoded = tokenizer(sentence[0], is_split_into_words=True, truncation=True, max_length=512)
        ids = encoded.word_ids()
        encoded["labels"] = [
            -100 if word is None or (index and ids[index - 1] == word) else tags.index(sentence[1][word])
            for index, word in enumerate(ids)
        ]
        return dict(encoded)

    train_rows, dev_rows = [encode(sentence) for sentence in sentences], [encode(sentence) for sentence in dev]
    model = AutoModelForTokenClassification.from_pretrained(folder, num_labels=len(tags))
    with tempfile.TemporaryDirectory() as output:
        arguments = TrainingArguments(
            output_dir=output, num_train_epochs=1, seed=seed, report_to="none", save_strategy="no", disable_tqdm=True
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=train_rows,
            data_collator=DataCollatorForTokenClassification(tokenizer),
        )
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
        logits = trainer.predict(dev_rows).predictions
    found = [
        [tags[scores[index].argmax()] for index, label in enumerate(row["labels"]) if label != -100]
        for scores, row in zip(logits, dev_rows, strict=True)
    ]
    gold = [[tags[label] for label in row["labels"] if label != -100] for row in dev_rows]
    return {"per_second": len(sentences) / seconds, "f1": f1_score(gold, found, mode="strict", scheme=IOB2)}


RUNS = {"nlptasks": run_nlptasks, "trainer": run_trainer}


def main() -> None:
    """Run both, in turn, for each seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--one", choices=RUNS)
    options = parser.parse_args()
    if options.one:
        found = RUNS[options.one](
            conll.read(options.data, "train")[: options.rows], conll.read(options.data, "dev"), options.seeds[0]
        )
        print("RESULT", json.dumps(found))
        return
    results: dict[str, list[dict[str, float]]] = {name: [] for name in RUNS}
    for seed in options.seeds:
        for name, runs in results.items():
            command = [
                sys.executable,
                __file__,
                "--data",
                options.data,
                "--rows",
                str(options.rows),
                "--seeds",
                str(seed),
                "--one",
                name,
            ]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            runs.append(json.loads(output.rpartition("RESULT ")[2]))
            print(seed, name, runs[-1], file=sys.stderr, flush=True)
    ratios = [ours["per_second"] / theirs["per_second"] for ours, theirs in zip(*results.values(), strict=True)]
    record: dict[str, Any] = {
        name: {key: summary([run[key] for run in runs]) for key in ("per_second", "f1")}
        for name, runs in results.items()
    }
    record |= {"rows": options.rows, "epochs": 1, "speed_ratio": summary(ratios)}
    record["mean_f1"] = {name: round(statistics.mean(run["f1"] for run in runs), 4) for name, runs in results.items()}
    keep("training", record, command=f"python tests/benchmarks/training.py --data CONLL_FOLDER --rows {options.rows}")


if __name__ == "__main__":
    main()
