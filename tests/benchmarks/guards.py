"""Damage that the checks of a model folder detect, and the time that the checks take.

    python tests/benchmarks/guards.py

Flips one bit in every byte of the small files of an exported model, and at 200 seeded places in large ones, truncates each file
at the same places, removes it, and appends to it. Every change must be refused; a changed model card must cause a warning. Then
the first load in a new process is timed, with and without the checks, in turn.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent.parent))

from common import keep, summary
from fuzz import make_model

import nlptasks
from nlptasks.backbones.pretrained import load_backbone
from nlptasks.errors import ModelError
from nlptasks.exporting.sources import StoredSource
from nlptasks.models.folder import ModelFolder
from nlptasks.models.model import Model, load_model

_LARGE_BYTES = 4096
_PLACES = 200
_RUNS = 9


def places(content: bytes) -> list[int]:
    """Return all positions in a small file, some in a large one."""
    if len(content) <= _LARGE_BYTES:
        return list(range(len(content)))
    return sorted(random.Random(7).sample(range(len(content)), _PLACES))


def mutations(content: bytes) -> Iterator[tuple[str, bytes | None]]:
    """Return damaged versions of a file, None for a removed one."""
    for at in places(content):
        yield "flip", content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :]
        yield "truncate", content[:at]
    yield "append", content + b" "
    yield "append", content + content
    yield "remove", None


class Warnings(logging.Handler):
    """Context manager that collects the library's warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.warnings: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.warnings.append(record.getMessage())

    def __enter__(self) -> None:
        logging.getLogger("nlptasks").addHandler(self)

    def __exit__(self, *_: object) -> None:
        logging.getLogger("nlptasks").removeHandler(self)


def open_all(model: Path) -> None:
    """Open a model folder and its exports."""
    stored = ModelFolder.open(model)
    source = StoredSource(stored, list(stored.records))
    for precision in stored.exports:
        source.exported(precision)


def detected(model: Path, backup: Path, name: str) -> dict[str, str]:
    """Return for each kind of damage of a file the number of detected cases, and of all."""
    recorded = Warnings()
    counts: dict[str, list[bool]] = {}
    content = (backup / name).read_bytes()
    for kind, changed in mutations(content):
        if changed is None:
            (model / name).unlink()
        else:
            (model / name).write_bytes(changed)
        recorded.warnings.clear()
        refused = False
        with recorded:
            try:
                open_all(model)
            except ModelError:
                refused = True
        counts.setdefault(kind, []).append(refused or any(name in warning for warning in recorded.warnings))
    (model / name).write_bytes(content)
    return {kind: f"{sum(found)} of {len(found)}" for kind, found in counts.items()}


def unchecked() -> list[Any]:
    """Return patches that disable the checks."""
    nothing: dict[str, Any] = {"return_value": None}
    return [
        mock.patch("nlptasks.models.folder.check_files", **nothing),
        mock.patch("nlptasks.models.manifest.check_list", **nothing),
        mock.patch("nlptasks.models.model.check_header", **nothing),
        mock.patch("nlptasks.storage.safetensors.check_finite", **nothing),
        mock.patch("nlptasks.backbones.backbone._check_weights", **nothing),
        mock.patch("nlptasks.backbones.backbone.Backbone._check", **nothing),
        mock.patch("nlptasks.backbones.info.check_vocabulary", **nothing),
        mock.patch("nlptasks.backbones.pretrained.check_finite", **nothing),
        mock.patch("nlptasks.backbones.pretrained.check_vocabulary", **nothing),
        mock.patch("nlptasks.backbones.pretrained._header", **nothing),
        mock.patch("nlptasks.backbones.pretrained.plan", **nothing),
        mock.patch("nlptasks.backbones.pretrained._checked", return_value=contextlib.nullcontext()),
    ]


LOADS: dict[str, Callable[[Path], object]] = {
    'load_backbone("minilm")': lambda folder: load_backbone("minilm"),
    "load_model of a saved minilm": lambda folder: load_model(ModelFolder.open(folder)),
}


def first_load(name: str, folder: Path, *, checked: bool) -> float:
    """Return the seconds of the first load in this process, without imports."""
    importlib.import_module("transformers.models.bert.modeling_bert")
    importlib.import_module("transformers.models.bert.tokenization_bert")
    with contextlib.ExitStack() as patches:
        for patch in [] if checked else unchecked():
            patches.enter_context(patch)
        started = time.perf_counter()
        LOADS[name](folder)
        return time.perf_counter() - started


def cost(name: str, folder: Path) -> dict[str, Any]:
    """Return the seconds with and without the checks, in new processes, in turn, and the ratio of the medians."""
    found: dict[str, list[float]] = {"checked": [], "unchecked": []}
    for _ in range(_RUNS):
        for kind, own in found.items():
            words = [sys.executable, __file__, "--load", name, kind, str(folder)]
            own.append(float(subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()[-1]))
    ratio = statistics.median(found["checked"]) / statistics.median(found["unchecked"])
    return {**{kind: summary(own) for kind, own in found.items()}, "ratio": round(ratio, 3)}


def main() -> None:
    """Measure, and write the result."""
    if sys.argv[1:2] == ["--load"]:
        name, kind, place = sys.argv[2:]
        print(first_load(name, Path(place), checked=kind == "checked"))
        return
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder))
        nlptasks.export(model)
        backup = Path(folder) / "backup"
        shutil.copytree(model, backup)
        names = sorted(path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file())
        found = {name: detected(model, backup, name) for name in names}
        minilm = Path(folder) / "minilm"
        Model(load_backbone("minilm"), {}, {}, {}).save(minilm)
        load = {name: cost(name, minilm) for name in LOADS}
    keep("guards", {"detected": found, "load_seconds": load}, command="python tests/benchmarks/guards.py")


if __name__ == "__main__":
    main()
