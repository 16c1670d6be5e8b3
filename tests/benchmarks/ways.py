"""Every way to run a model on labelled data, each in a process of its own, in turn: ``nlptasks benchmark``, as ratios.

    python tests/benchmarks/ways.py --model runs/ner --data ner=CONLL_FOLDER

The whole is done several times, and the ratios of each time are kept beside their median.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common import keep, summary

from nlptasks.benchmarking.runner import Benchmark, benchmark
from nlptasks.benchmarking.worker import TRANSFORMERS
from nlptasks.config import parse_target


def ratios(runs: list[Benchmark], base: str) -> dict[str, Any]:
    """How many times as fast as one way the others are."""
    speeds = [{one.way: one.texts_per_second for one in run.ways} for run in runs]
    return {
        way: summary([own[way] / own[base] for own in speeds])
        for way in speeds[0]
        if all({way, base} <= own.keys() for own in speeds)
    }


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", nargs="*", default=[], metavar="HEAD=DATA")
    parser.add_argument("--split", default=None)
    parser.add_argument("--most", type=int, default=4000)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--name", default="ways", help="of the result")
    options = parser.parse_args()
    targets = [parse_target(text) for text in options.data]
    runs = [
        benchmark(options.model, targets, split=options.split, device=options.device, rounds=3, most=options.most)
        for _ in range(options.times)
    ]
    first = asdict(runs[0])
    bases = [base for base in ("torch", TRANSFORMERS) if any(one.way == base for one in runs[0].ways)]
    keep(
        options.name,
        {
            "texts": first["texts"],
            "tokens": first["tokens"],
            "failed": first["failed"],
            "best": [run.best for run in runs],
            **{f"times {base}": ratios(runs, base) for base in bases},
            "ways": [
                {**one, **{key: round(one[key], 4) for key in ("texts_per_second", "tokens_per_second", "p50", "p95")}}
                for one in first["ways"]
            ],
        },
        command="python tests/benchmarks/ways.py --model MODEL --data "
        + " ".join(f"{target.name}={Path(target.data).name}" for target in targets if target.data),
    )


if __name__ == "__main__":
    main()
