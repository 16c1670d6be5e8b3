"""A short run of the fuzzer; `benchmarks/fuzz.py` does long ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import fuzzing


def test_mutated_files_are_read_or_refused(trained: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, fuzzing.__file__, str(trained), str(tmp_path), "1", "0", "20"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "RUST_BACKTRACE": "0"},
    )
    counts, wrong, open_case = fuzzing.summary(done.stdout.splitlines())
    assert (wrong, open_case, done.returncode) == ([], -1, 0), done.stderr[-3000:]
    assert set(counts) == {name for name, _ in fuzzing.TARGETS}
