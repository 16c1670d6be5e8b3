"""Training on all of CoNLL-2003 with the defaults: F1 on dev and test by label, and seconds.

python tests/benchmarks/full_training.py --data CONLL_FOLDER --model runs/ner
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common import keep, log_of

import nlptasks


def main() -> None:
    """Train once and keep what ``training.json`` says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    options = parser.parse_args()
    nlptasks.train(f"ner={options.data}", output=options.model, overwrite=True)
    log = log_of(options.model)
    command = "python tests/benchmarks/full_training.py --data CONLL_FOLDER --model runs/ner"
    keep("full_training", {"training": log}, command=command)


if __name__ == "__main__":
    main()
