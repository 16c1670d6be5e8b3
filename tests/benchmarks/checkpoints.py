"""What checkpoints cost at the default interval: the share of a run's time that goes into writing them.

python tests/benchmarks/checkpoints.py --data CONLL_FOLDER
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import conll
from common import keep, summary

from nlptasks import TrainSettings, train
from nlptasks.storage.checkpoints import Checkpoint, Checkpoints


def main() -> None:
    """Train with the defaults, and time each save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--epochs", type=int, default=3)
    given = parser.parse_args()
    save, seconds = Checkpoints.save, list[float]()

    def timed(self: Checkpoints, checkpoint: Checkpoint) -> None:
        started = time.perf_counter()
        save(self, checkpoint)
        seconds.append(time.perf_counter() - started)

    Checkpoints.save = timed  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        data.mkdir()
        conll.write(data / "train.tsv", conll.read(given.data, "train")[: given.rows])
        conll.write(data / "dev.tsv", conll.read(given.data, "dev")[:500])
        result = train(f"ner={data}", output=Path(folder) / "model", settings=TrainSettings(epochs=given.epochs))
    record = {
        "rows": given.rows,
        "epochs": given.epochs,
        "run_seconds": round(result.seconds, 1),
        "save_seconds": summary(seconds),
        "share": round(sum(seconds) / result.seconds, 4),
    }
    keep("checkpoints", record, command="python tests/benchmarks/checkpoints.py --data CONLL_FOLDER")


if __name__ == "__main__":
    main()
