"""Fixtures: no network access, tiny backbones, and trained models that many tests share."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
if "PYTEST_XDIST_WORKER" in os.environ:  # several processes share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

import nlptasks
from nlptasks.config import TrainSettings

TOY_CONLL = "\n".join(
    f"{name}\tB-PER\nSmith\tI-PER\n{verb}\tO\n{place}\tB-LOC\n.\tO\n"
    for name, verb, place in [
        ("Ada", "saw", "London"),
        ("Bob", "left", "Paris"),
        ("Cleo", "saw", "Rome"),
        ("Dan", "left", "Berlin"),
    ]
    * 6
)
TOY_CONLL += "".join(
    f"\n{filler * before}{name}\tB-PER\nSmith\tI-PER\n{filler * after}"
    for filler in ["saw\tO\n.\tO\n"]
    for name in ["Ada", "Bob"]
    for before, after in [(0, 12), (3, 9), (6, 6), (9, 3), (12, 0), (30, 30)]
)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Start each test with the same random state."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a folder for each tiny backbone."""
    place = tmp_path_factory.mktemp("backbones")
    for name in tiny.ARCHITECTURES:
        tiny.make(name, place / name)
    return place


@pytest.fixture(scope="session")
def conll_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy data set in CoNLL columns."""
    place = tmp_path_factory.mktemp("conll")
    (place / "train.conll").write_text(TOY_CONLL)
    (place / "dev.conll").write_text(TOY_CONLL)
    return place


@pytest.fixture(scope="session")
def trained(backbones: Path, conll_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that was trained on the toy data. Copy it before you change it."""
    place = tmp_path_factory.mktemp("trained") / "model"
    settings = TrainSettings(
        backbone=str(backbones / "bert"), epochs=30, patience=30, lr=3e-3, batch_tokens=128, precision="fp32"
    )
    nlptasks.train(f"ner={conll_data}", output=place, settings=settings)
    return place


@pytest.fixture(scope="session")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the trained model, exported to ONNX."""
    place = tmp_path_factory.mktemp("exported") / "model"
    shutil.copytree(trained, place)
    nlptasks.export(place)
    return place


_QUICK: dict[str, Any] = {"epochs": 1, "lr": 3e-3, "batch_tokens": 64, "precision": "fp32"}


@pytest.fixture(scope="session")
def moods(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Toy data for a sentiment head."""
    place = tmp_path_factory.mktemp("moods")
    rows = [{"text": f"{name} {verb}", "label": label} for name in ("Ada", "Bob", "Cleo") for verb, label in
            (("smiled", "positive"), ("wept", "negative"))]  # fmt: skip
    for part in ("train", "dev"):
        (place / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 3))
    return place


@pytest.fixture(scope="session")
def both(trained: Path, moods: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained model with a sentiment head that owns a layer and a classifier that owns none. Copy it before you change it."""
    place = tmp_path_factory.mktemp("both") / "model"
    shutil.copytree(trained, place)
    nlptasks.train(f"mood:sentiment={moods}", add_to=place, settings=TrainSettings(tune="top:1", **_QUICK))
    nlptasks.train(f"topic:classification={moods}", add_to=place, settings=TrainSettings(tune="head", **_QUICK))
    return place


@pytest.fixture(scope="session")
def both_exported(both: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the model with three heads, exported to ONNX."""
    place = tmp_path_factory.mktemp("both_exported") / "model"
    shutil.copytree(both, place)
    nlptasks.export(place)
    return place
