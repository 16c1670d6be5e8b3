"""Every registered head on every tiny backbone, alone and all in one graph, and a stranger's head."""

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

TOY = '''
"""A stranger's head: do two texts begin with the same letter?"""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from nlptasks.config import decided, setting
from nlptasks.errors import DataError
from nlptasks.heads.base import Head
from nlptasks.types import Source


@dataclass(frozen=True)
class Same:
    label: str
    score: float


@dataclass(frozen=True)
class ToyConfig:
    size: int = setting(8, "width of the hidden layer")
    answers: tuple = decided(("no", "yes"), "the classes")


class ToyHead(Head):
    contract = 1
    Config = ToyConfig
    main_metric = "accuracy"
    fields = ("left", "right", "same")
    sample = "sample"
    results = (Same,)
    outputs = {"scores": "BC"}

    def __init__(self, config, *, backbone):
        super().__init__(config, backbone=backbone)
        self.net = nn.Sequential(nn.Linear(backbone.width, config.size), nn.Tanh(), nn.Linear(config.size, 2))

    @classmethod
    def configure(cls, rows, given):
        return ToyConfig()

    @property
    def labels(self):
        return self.config.answers

    def read(self, row):
        if not {"left", "right"} <= set(row.fields):
            raise DataError(row.where, "has no 'left' and 'right'", "add them")
        return row.fields

    def gold(self, example):
        return example.get("same")

    def sources(self, example):
        return [Source(example["left"], example["right"])]

    def features(self, example, window):
        gold = self.config.answers.index(example["same"])
        return {"labels": np.array([gold] + [-100] * (len(window) - 1))}

    def forward(self, states, batch):
        return {"scores": self.net(states[:, 0])}

    def loss(self, states, batch):
        scores = self.forward(states, batch)["scores"].float()
        return nn.functional.cross_entropy(scores, batch["labels"][:, 0], reduction="sum"), batch["mask"][:, 0].sum()

    def decode(self, example, windows, outputs):
        scores = np.mean([output["scores"] for output in outputs], axis=0)
        return Same(self.config.answers[int(scores.argmax())], round(float(scores.max()), 4))

    def metrics(self, examples, results):
        right = [example["same"] == result.label for example, result in zip(examples, results)]
        return {"accuracy": sum(right) / len(right)}
'''


@pytest.fixture(scope="module")
def toy_package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An installed package with one head, as a stranger would write it."""
    place = tmp_path_factory.mktemp("site")
    (place / "toyhead" / "sample").mkdir(parents=True)
    (place / "toyhead" / "__init__.py").write_text(TOY)
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
    """All that are tried on a backbone."""
    return [task for task in BUILT_IN if architecture in WITH_FURTHER_GRAPHS or head_class(task).graphs is Head.graphs]


@pytest.mark.parametrize(
    ("task", "architecture"), [(task, name) for name in tiny.ARCHITECTURES for task in _tasks_on(name)]
)
def test_a_head_conforms(task: str, architecture: str, backbones: Path, tmp_path: Path) -> None:
    checks.check_without_export(checks.make_subject(task, backbones / architecture), tmp_path / "model")


def test_a_strangers_head_conforms(toy_package: None, backbones: Path, tmp_path: Path) -> None:
    assert tasks()["toy"].package == "toyhead 1.0"
    checks.check_all("toy", backbones / "bert", tmp_path / "model")


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_all_heads_in_one_graph_answer_on_onnx_runtime_as_on_pytorch(
    architecture: str, backbones: Path, tmp_path: Path
) -> None:
    tried = _tasks_on(architecture)
    targets = covering.targets(tried, tmp_path / "data", rows=48)
    model = covering.train(targets, backbones / architecture, tmp_path / "model", epochs=4)
    assert nlptasks.export(model).max_difference <= 1e-4
    subjects = [checks.make_subject(task, backbones / architecture) for task in tried]
    checks.check_numbers(model, [batch for subject in subjects for batch in checks.batches_of(subject)])
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
def test_a_head_trains_by_command_line_and_answers_the_same_in_a_new_process(
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


def test_a_strangers_head_trains_by_command_line(toy_package: None, backbones: Path, tmp_path: Path) -> None:
    train_by_command_line("toy", backbones / "bert", tmp_path / "model")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"left": "ada", "right": "ann"}\n')
    done = CliRunner().invoke(main, ["predict", str(tmp_path / "model"), "--input", str(rows), "--json"])
    [record] = [json.loads(line) for line in done.stdout.splitlines()]
    assert record["left"] == "ada"
    assert set(record["results"]["toy"]) == {"label", "score"}
