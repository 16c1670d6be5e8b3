"""What the checks of a model folder find, and what they cost.

    OMP_NUM_THREADS=1 python tests/benchmarks/guards.py

Flips one bit in every byte of the small files of an exported model, and of 200 seeded places in the large ones, cuts each file
off at as many places, removes it, and appends to it. Then it times loading, with the checks and without.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent.parent))

from common import keep
from fuzz import make_model

import nlptasks
from nlptasks.errors import ModelError
from nlptasks.model import Model, ModelFolder
from nlptasks.pretrained import load_backbone

_LARGE_BYTES = 4096
_PLACES = 200
_RUNS = 9


def places(content: bytes) -> list[int]:
    """Every byte of a small file, some of a large one."""
    if len(content) <= _LARGE_BYTES:
        return list(range(len(content)))
    return sorted(random.Random(7).sample(range(len(content)), _PLACES))


def mutations(content: bytes) -> Iterator[tuple[str, bytes | None]]:
    """What may happen to a file."""
    for at in places(content):
        yield "flip", content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :]
        yield "truncate", content[:at]
    yield "append", content + b" "
    yield "append", content + content
    yield "remove", None


def detected(model: Path, backup: Path, name: str) -> dict[str, str]:
    """For each kind of mutation of a file, how many were refused, of how many."""
    counts: dict[str, list[bool]] = {}
    content = (backup / name).read_bytes()
    for kind, changed in mutations(content):
        if changed is None:
            (model / name).unlink()
        else:
            (model / name).write_bytes(changed)
        try:
            ModelFolder.open(model)
            counts.setdefault(kind, []).append(False)
        except ModelError:
            counts.setdefault(kind, []).append(True)
    (model / name).write_bytes(content)
    return {kind: f"{sum(found)} of {len(found)}" for kind, found in counts.items()}


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def unchecked() -> list[Any]:
    """The checks, taken out."""
    nothing: dict[str, Any] = {"return_value": None}
    return [
        mock.patch("nlptasks.model.check_files", **nothing),
        mock.patch("nlptasks.model.check_header", **nothing),
        mock.patch("nlptasks.model.check_list", **nothing),
        mock.patch("nlptasks.model.plain_files", return_value=[]),
        mock.patch("nlptasks.weights.check_finite", **nothing),
        mock.patch("nlptasks.backbone._check_weights", **nothing),
        mock.patch("nlptasks.backbone.Backbone._check", **nothing),
        mock.patch("nlptasks.backbone.check_vocabulary", **nothing),
        mock.patch("nlptasks.pretrained.check_finite", **nothing),
        mock.patch("nlptasks.pretrained.check_vocabulary", **nothing),
        mock.patch("nlptasks.pretrained._header", **nothing),
        mock.patch("nlptasks.pretrained.plan", **nothing),
        mock.patch("nlptasks.pretrained._checked", return_value=contextlib.nullcontext()),
    ]


def cost(work: Callable[[], object]) -> dict[str, float]:
    """Median seconds with the checks and without, taken in turns, and how many times as long the checks make it."""
    checked, bare = [], []
    for _ in range(_RUNS):
        checked.append(seconds(work))
        with contextlib.ExitStack() as patches:
            for patch in unchecked():
                patches.enter_context(patch)
            bare.append(seconds(work))
    one, two = statistics.median(checked[1:]), statistics.median(bare[1:])
    return {"checked": round(one, 4), "unchecked": round(two, 4), "ratio": round(one / two, 3)}


def main() -> None:
    """Measure, and keep what was found."""
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder))
        nlptasks.export(model)
        backup = Path(folder) / "backup"
        shutil.copytree(model, backup)
        names = sorted(path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file())
        found = {name: detected(model, backup, name) for name in names}
        minilm = Path(folder) / "minilm"
        Model(load_backbone("minilm"), {}, {}).save(minilm)
        load = {
            'load_backbone("minilm")': cost(lambda: load_backbone("minilm")),
            "Model.load of a saved minilm": cost(lambda: Model.load(minilm)),
        }
    keep("guards", {"detected": found, "load_seconds": load}, command="OMP_NUM_THREADS=1 guards.py")


if __name__ == "__main__":
    main()
