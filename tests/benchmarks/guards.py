"""What the checks of a model folder find, and what they cost.

    python tests/benchmarks/guards.py

Flips one bit in every byte of the small files of an exported model, and of 200 seeded places in the large ones, cuts each file
off at as many places, removes it, and appends to it. All must be refused; a changed model card must be warned of. Then it times
the first load of a new process, with the checks and without, in turn.
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
from nlptasks.models.model import Model, ModelFolder

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


class Noted(logging.Handler):
    """Keeps the library's warnings while it is entered."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.warnings: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.warnings.append(record.getMessage())

    def __enter__(self) -> None:
        logging.getLogger("nlptasks").addHandler(self)

    def __exit__(self, *_: object) -> None:
        logging.getLogger("nlptasks").removeHandler(self)


def detected(model: Path, backup: Path, name: str) -> dict[str, str]:
    """For each kind of mutation of a file, how many were noticed, of how many."""
    noted = Noted()
    counts: dict[str, list[bool]] = {}
    content = (backup / name).read_bytes()
    for kind, changed in mutations(content):
        if changed is None:
            (model / name).unlink()
        else:
            (model / name).write_bytes(changed)
        noted.warnings.clear()
        refused = False
        with noted:
            try:
                ModelFolder.open(model)
            except ModelError:
                refused = True
        counts.setdefault(kind, []).append(refused or any(name in warning for warning in noted.warnings))
    (model / name).write_bytes(content)
    return {kind: f"{sum(found)} of {len(found)}" for kind, found in counts.items()}


def unchecked() -> list[Any]:
    """The checks, taken out."""
    nothing: dict[str, Any] = {"return_value": None}
    return [
        mock.patch("nlptasks.models.model.check_files", **nothing),
        mock.patch("nlptasks.models.model.check_header", **nothing),
        mock.patch("nlptasks.models.model.check_list", **nothing),
        mock.patch("nlptasks.models.model.plain_files", return_value=[]),
        mock.patch("nlptasks.storage.safetensors.check_finite", **nothing),
        mock.patch("nlptasks.backbones.backbone._check_weights", **nothing),
        mock.patch("nlptasks.backbones.backbone.Backbone._check", **nothing),
        mock.patch("nlptasks.backbones.backbone.check_vocabulary", **nothing),
        mock.patch("nlptasks.backbones.pretrained.check_finite", **nothing),
        mock.patch("nlptasks.backbones.pretrained.check_vocabulary", **nothing),
        mock.patch("nlptasks.backbones.pretrained._header", **nothing),
        mock.patch("nlptasks.backbones.pretrained.plan", **nothing),
        mock.patch("nlptasks.backbones.pretrained._checked", return_value=contextlib.nullcontext()),
    ]


LOADS: dict[str, Callable[[Path], object]] = {
    'load_backbone("minilm")': lambda folder: load_backbone("minilm"),
    "Model.load of a saved minilm": Model.load,
}


def first_load(name: str, folder: Path, *, checked: bool) -> float:
    """Seconds that the first load of this process takes; what it would import first is imported before."""
    importlib.import_module("transformers.models.bert.modeling_bert")
    importlib.import_module("transformers.models.bert.tokenization_bert")
    with contextlib.ExitStack() as patches:
        for patch in [] if checked else unchecked():
            patches.enter_context(patch)
        started = time.perf_counter()
        LOADS[name](folder)
        return time.perf_counter() - started


def cost(name: str, folder: Path) -> dict[str, Any]:
    """Seconds with the checks and without, each in a process of its own, in turn, and the ratio of the medians."""
    found: dict[str, list[float]] = {"checked": [], "unchecked": []}
    for _ in range(_RUNS):
        for kind, own in found.items():
            words = [sys.executable, __file__, "--load", name, kind, str(folder)]
            own.append(float(subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()[-1]))
    ratio = statistics.median(found["checked"]) / statistics.median(found["unchecked"])
    return {**{kind: summary(own) for kind, own in found.items()}, "ratio": round(ratio, 3)}


def main() -> None:
    """Measure, and keep what was found."""
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
        Model(load_backbone("minilm"), {}, {}).save(minilm)
        load = {name: cost(name, minilm) for name in LOADS}
    keep("guards", {"detected": found, "load_seconds": load}, command="python tests/benchmarks/guards.py")


if __name__ == "__main__":
    main()
