"""Speed of all backends and of transformers on labelled data: ratios from several runs of ``nlptasks benchmark``.

    python tests/benchmarks/backends.py --model runs/ner --data ner=CONLL_FOLDER

The ratios of each run are kept beside their median.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import keep, summary

from nlptasks.config import parse_target

if TYPE_CHECKING:
    from nlptasks.benchmarking.runner import Benchmark


def ratios(runs: list[Benchmark], base: str) -> dict[str, Any]:
    """Return the speeds of all candidates relative to one."""
    speeds = [{one.name: one.texts_per_second for one in run.candidates} for run in runs]
    return {
        name: summary([own[name] / own[base] for own in speeds])
        for name in speeds[0]
        if all({name, base} <= own.keys() for own in speeds)
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
    parser.add_argument("--name", default="backends", help="name of the result")
    options = parser.parse_args()
    targets = [parse_target(text) for text in options.data]

    # The workers import this module again: imports at its top would count in their memory.
    from nlptasks.benchmarking.candidates import TRANSFORMERS
    from nlptasks.benchmarking.runner import benchmark

    runs = [
        benchmark(options.model, targets, split=options.split, device=options.device, rounds=3, most=options.most)
        for _ in range(options.times)
    ]
    first = runs[0].to_dict()
    bases = [
        base
        for base in (runs[0].candidates[0].name, TRANSFORMERS)
        if any(one.name == base for one in runs[0].candidates)
    ]
    keep(
        options.name,
        {
            "texts": first["texts"],
            "tokens": first["tokens"],
            "failed": first["failed"],
            "best": [run.best for run in runs],
            **{f"times {base}": ratios(runs, base) for base in bases},
            "candidates": [
                {**one, **{key: round(one[key], 4) for key in ("texts_per_second", "tokens_per_second", "p50", "p95")}}
                for one in first["candidates"]
            ],
        },
        command="python tests/benchmarks/backends.py --model MODEL --data "
        + " ".join(f"{target.name}={Path(target.data).name}" for target in targets if target.data),
    )


if __name__ == "__main__":
    main()
