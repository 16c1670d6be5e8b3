"""Every registered head on every tiny backbone, alone and all in one graph, and a head of another package."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import covering
import pytest
import spacy
import tiny
from answering import TEXTS
from click.testing import CliRunner

import nlptasks
from nlptasks.cli.main import main
from nlptasks.heads.base import Head
from nlptasks.pipeline import pipeline
from nlptasks.registry import head_class, tasks
from nlptasks.testing import checks

HEAD = '''
"""A head of another package: do two texts begin with the same letter?"""

from dataclasses import dataclass

import numpy as np

from nlptasks import Counts, DataError, Head, Metrics, ModelInput, Schema, derived, option


@dataclass(frozen=True)
class Same:
    label: str
    score: float


@dataclass(frozen=True)
class ToyConfig:
    size: int = option(8, "width of the hidden layer")
    answers: tuple = derived(("no", "yes"), "the classes")


class ToyHead(Head):
    Config = ToyConfig
    network = "toyhead.network:ToyNetwork"
    schema = Schema(contract=2, fields=("left", "right", "same"), gold=("same",), results=(Same,))

    @classmethod
    def configure(cls, rows, options, backbone):
        return options

    def network_options(self):
        return {"size": self.config.size}

    def read(self, row):
        if not {"left", "right"} <= set(row.fields):
            raise DataError(row.where, "has no 'left' and 'right'", "add them")
        return row.fields

    def gold(self, example):
        return example.get("same")

    def inputs(self, example):
        return [ModelInput((example["left"], example["right"]))]

    def targets(self, example, window):
        return {"labels": np.array([self.config.answers.index(example["same"])])}

    def decode(self, example, windows, outputs):
        scores = np.mean([output["scores"] for output in outputs], axis=0) if outputs else np.zeros(2)
        return Same(self.config.answers[int(scores.argmax())], round(float(scores.max()), 4))

    def count(self, example, result):
        return Counts({"right": int(example["same"] == result.label), "all": 1})

    def metrics(self, counts):
        return Metrics({"accuracy": counts.sums["right"] / counts.sums["all"]}, main="accuracy")
'''

NETWORK = """
import torch
from torch import nn

from nlptasks import Network


class ToyNetwork(Network):
    outputs = {"scores": "BC"}
    targets = {"labels": "BL"}

    def __init__(self, backbone, *, size):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(backbone.width, size), nn.Tanh(), nn.Linear(size, 2))

    def forward(self, states, batch):
        return {"scores": self.layers(states[:, 0])}

    def loss(self, outputs, batch):
        labels = batch["labels"][:, 0]
        return nn.functional.cross_entropy(outputs["scores"].float(), labels, reduction="sum"), torch.tensor(len(labels))
"""


@pytest.fixture(scope="module")
def toy_package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An installed package with one head."""
    place = tmp_path_factory.mktemp("site")
    (place / "toyhead" / "sample").mkdir(parents=True)
    (place / "toyhead" / "__init__.py").write_text(HEAD)
    (place / "toyhead" / "network.py").write_text(NETWORK)
    texts = ["ada saw london", "bob left", "cleo saw rome", "dan left paris", "ada left", "bob saw berlin"]
    rows = [{"left": one, "right": two, "same": "yes" if one[0] == two[0] else "no"} for one in texts for two in texts]
    for part in ("train", "dev", "test"):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (place / "toyhead" / "sample" / f"{part}.jsonl").write_text(lines)
    info = place / "toyhead-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toyhead\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[nlptasks.heads]\ntoy = toyhead:ToyHead\n")
    sys.path.insert(0, str(place))
    yield
    sys.path.remove(str(place))


BUILT_IN = covering.built_in()
WITH_FURTHER_GRAPHS = ("bert", "modernbert", "t5", "bart")
"""Architectures with heads that have further graphs, which take long to export."""


def _tasks_on(architecture: str) -> list[str]:
    """Return the tasks that are tried on a backbone."""
    is_light = {task: head_class(task).generator is Head.generator for task in BUILT_IN}
    return [task for task in BUILT_IN if architecture in WITH_FURTHER_GRAPHS or is_light[task]]


@pytest.mark.parametrize(
    ("task", "architecture"), [(task, name) for name in tiny.ARCHITECTURES for task in _tasks_on(name)]
)
def test_a_head_conforms(task: str, architecture: str, backbones: Path, tmp_path: Path) -> None:
    checks.check_without_export(checks.make_head(task, backbones / architecture), tmp_path / "model")


def test_a_head_of_another_package_conforms(toy_package: None, backbones: Path, tmp_path: Path) -> None:
    assert tasks()["toy"].package == "toyhead 1.0"
    checks.check_all("toy", backbones / "bert", tmp_path / "model")


_QUICK = ("bert", "t5")
"""An encoder and an encoder-decoder; the other architectures are slow tests."""


@pytest.mark.parametrize(
    "architecture",
    [name if name in _QUICK else pytest.param(name, marks=pytest.mark.slow) for name in tiny.ARCHITECTURES],
)
def test_all_heads_in_one_graph_give_the_same_results_on_both_backends(
    architecture: str, backbones: Path, tmp_path: Path
) -> None:
    tried = _tasks_on(architecture)
    targets = covering.targets(tried, tmp_path / "data", rows=48)
    model = covering.train(targets, backbones / architecture, tmp_path / "model", epochs=4)
    assert nlptasks.export(model).max_difference <= 1e-4
    heads = [checks.make_head(task, backbones / architecture) for task in tried]
    checks.check_numbers(model, [batch for head in heads for batch in checks.batches_of(head)])
    rows = covering.sample_rows(tried, 3)
    for beams in (1, 3) if any(covering.has_beams(task) for task in tried) else (1,):
        expected, found = (covering.answers(model, backend, rows, beams=beams) for backend in ("torch", "onnx:fp32"))
        likeness = covering.likeness(expected, found)
        assert set(likeness) == set(tried)
        for one in likeness.values():
            assert one.same == 1
            assert one.score <= 1e-4
    nlp = spacy.blank("en")
    nlp.add_pipe("nlptasks", config={"model": str(model), "backend": "onnx"})
    assert [doc._.nlptasks for doc in nlp.pipe(TEXTS)] == pipeline(model=model, backend="onnx")(TEXTS)


def train_by_command_line(task: str, backbone: Path, model: Path) -> None:
    options = ["--backbone", str(backbone), "--epochs", "1", "--precision", "fp32"]
    done = CliRunner().invoke(main, ["train", task, "-o", str(model), *options])
    assert done.exit_code == 0, done.output
    assert "predictions on texts that it has not seen:" in done.stdout
    assert str(model) in CliRunner().invoke(main, ["show", str(model)]).stdout
    assert f"--set {task}." in CliRunner().invoke(main, ["tasks", task]).stdout


@pytest.mark.parametrize("task", BUILT_IN)
def test_a_head_trains_by_command_line_and_gives_the_same_results_in_a_new_process(
    task: str, backbones: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    train_by_command_line(task, backbones / "roberta", model)
    text = "Ada Smith saw London and left Paris in 1996."
    here = CliRunner().invoke(main, ["predict", str(model), text, "--json"]).stdout
    command = [sys.executable, "-m", "nlptasks", "predict", str(model), text, "--json"]
    there = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert json.loads(here) == json.loads(there)
    assert json.loads(here)["text"] == text


def test_a_head_of_another_package_trains_by_command_line(toy_package: None, backbones: Path, tmp_path: Path) -> None:
    train_by_command_line("toy", backbones / "bert", tmp_path / "model")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"left": "ada", "right": "ann"}\n')
    done = CliRunner().invoke(main, ["predict", str(tmp_path / "model"), "--input", str(rows), "--json"])
    [record] = [json.loads(line) for line in done.stdout.splitlines()]
    assert record["left"] == "ada"
    assert set(record["results"]["toy"]) == {"label", "score"}
