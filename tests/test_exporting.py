"""An export has the model's own numbers, or is not written; what cannot be exported is named."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from answering import TEXTS, contents, copied, rewritten, run
from click.testing import Result
from test_conformance import TOY
from torch import Tensor, nn

import nlptasks
from nlptasks.backbones.backbone import Backbone
from nlptasks.config import recorded
from nlptasks.errors import BackendError, ModelError
from nlptasks.exporting import exporter as exporting
from nlptasks.exporting.exporter import export, export_graph
from nlptasks.exporting.parity import Parity, compare, worst
from nlptasks.exporting.precisions import PRECISIONS
from nlptasks.exporting.tracing import _PLAIN, Engine, Traceable, engines
from nlptasks.inference.batching import random_batch
from nlptasks.models.manifest import HeadRecord
from nlptasks.models.model import Model, ModelFolder
from nlptasks.pipeline import pipeline
from nlptasks.registry import head_class
from nlptasks.runtimes.base import ENCODE
from nlptasks.runtimes.onnx import OnnxRuntime
from nlptasks.runtimes.pytorch import TorchRuntime
from nlptasks.storage.atomic import sealed, unsealed

CPU = torch.device("cpu")

# X1: the model's own numbers, or nothing


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (7, 33), (3, 16), (1, 128), (5, 128)], ids=str)
def test_every_shape_has_pytorchs_numbers_and_labels(both_exported: Path, shape: tuple[int, int]) -> None:
    model = ModelFolder.open(both_exported).model()
    assert model.backbone.info.max_tokens == 128
    runtime = OnnxRuntime({ENCODE: both_exported / "onnx/fp32/model.onnx"}, device="cpu", precision="fp32")
    batch = random_batch(model.backbone.info, shape, seed=100)  # other tokens than the export itself compares
    batch["mask"][1:, max(1, shape[1] // 3) :] = 0  # as uneven as texts are
    before = TorchRuntime({ENCODE: model}, CPU).run(ENCODE, batch)
    after = {name: runtime.fetch(value) for name, value in runtime.run(ENCODE, batch).items()}
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        head, _, output = name.partition(".")
        real = batch["mask"] == 1 if "S" in model.heads[head].outputs[output] else slice(None)
        one, two = tensor.numpy()[real], after[name][real]
        np.testing.assert_allclose(one, two, atol=1e-4, rtol=0)
        assert (one.argmax(-1) == two.argmax(-1)).all()


def wrong(graph: Traceable, path: Path) -> None:
    """Write what a model with slightly other weights gives, and one file more than there should be."""
    before = [weight.clone() for weight in graph.traced.parameters()]
    with torch.no_grad():
        for weight in graph.traced.parameters():
            weight.mul_(1.01)
        _PLAIN[0].write(graph, path)
        for weight, own in zip(graph.traced.parameters(), before, strict=True):
            weight.copy_(own)
    path.with_name(f"{path.name}.more").touch()


WRONG = Engine("wrong", wrong)


def test_an_engine_that_gives_other_numbers_is_passed_over(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "engines", lambda fusions: (WRONG, *engines(fusions)))
    model = copied(trained, tmp_path / "model")
    report = export(model)
    assert report.engine == "transformers, eager attention"
    assert report.max_difference <= 1e-4
    assert report.agreement == 1
    found = pipeline("ner", model=model, backend="onnx:fp32", device="cpu")(TEXTS)
    own = pipeline("ner", model=model, backend="torch", device="cpu")(TEXTS)
    assert [[e.label for e in one] for one in found] == [[e.label for e in one] for one in own]
    assert {path.name for path in (model / "onnx/fp32").iterdir()} == {"model.onnx", "model.onnx.data", "report.json"}


def test_where_no_engine_gives_the_numbers_nothing_is_written(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(graph: Traceable, path: Path) -> None:
        path.touch()
        raise RuntimeError("no such op\nand more")

    monkeypatch.setattr(exporting, "engines", lambda fusions: (WRONG, Engine("none", failing)))
    model = copied(trained, tmp_path / "model")
    with pytest.raises(
        BackendError, match=r"wrong: .*outputs differ by .*; none: RuntimeError: no such op\)"
    ) as caught:
        export(model)
    assert caught.value.exit_code == 6
    assert contents(model) == contents(trained)


class Small(nn.Module):
    """A small graph."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"y": self.linear(x) * 2}


class Given(nn.Module):
    """The same from named tensors."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self.module(**given)
        return found


def small() -> Traceable:
    module = Small().eval()
    return Traceable(
        name="small",
        module=Given(module),
        traced=module,
        samples=[{"x": torch.randn(3, 4)}, {"x": torch.randn(1, 4)}],
        axes={"x": (0,)},
        counts=lambda name, value, inputs: value,
        labels=frozenset({"y"}),
        trunk=None,
    )


def test_a_precision_that_gives_no_numbers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "engines", lambda fusions: _PLAIN[:1])
    for number in (np.nan, np.inf):
        broken = replace(PRECISIONS["int8"], convert=partial(rewritten, number=number))
        with pytest.raises(BackendError, match="outputs in int8 are no numbers"):
            export_graph(small(), tmp_path / "small.onnx", broken)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "engine",
    [pytest.param(one, id=one.name) for one in engines("cuda")],
)
def test_every_engine_writes_a_graph_with_the_names_of_its_outputs(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "engines", lambda fusions: (engine,))
    name, parity = export_graph(small(), tmp_path / "small.onnx", PRECISIONS["fp32"])
    assert (name, parity.agreement) == (engine.name, 1.0)
    assert parity.max_difference < 1e-5
    folders = [str(Path(module.__file__).parents[1]).encode() for module in (nlptasks, torch)]
    for path in tmp_path.iterdir():  # of whoever exported it, nothing is told
        assert not [folder for folder in folders if folder in path.read_bytes()]


def test_parity_is_the_largest_difference_and_the_share_of_equal_labels() -> None:
    one = [{"y": np.array([[1.0, 2.0], [3.0, 1.0]]), "z": np.zeros(3)}, {"y": np.empty((0, 2)), "z": np.ones(2)}]
    two = [{"y": np.array([[1.0, 2.0], [3.0, 3.5]]), "z": np.full(3, -4.0)}, {"y": np.empty((0, 2)), "z": np.ones(2)}]
    assert compare(small(), one, two) == Parity(4.0, 0.5, {"small": 4.0})
    two[1]["z"] = np.array([1.0, np.nan])
    assert np.isnan(compare(small(), one, two).max_difference)
    assert compare(replace(small(), labels=frozenset()), one, one) == Parity(0.0, None, {"small": 0.0})
    three = [Parity(1.0, 0.5, {"a": 1.0}), Parity(2.0, 0.9, {"a": 0.5, "b": 2.0}), Parity(0.1, None)]
    assert worst(three) == Parity(2.0, 0.5, {"a": 1.0, "b": 2.0})
    assert np.isnan(worst([Parity(np.nan, None), Parity(2.0, None)]).max_difference)


# X4: the runtime is older than the graph


def test_a_runtime_that_is_too_old_is_told_before_anything_is_written(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nlptasks.runtimes.onnx_validation.newest_opset", lambda: 10)
    model = copied(exported, tmp_path / "model")
    told = rf"has ONNX opset \d+, and ONNX Runtime {re.escape(onnxruntime.__version__)} reads up to 10; upgrade ONNX Runtime"
    with pytest.raises(BackendError, match=told) as caught:
        export(model)
    assert caught.value.exit_code == 6
    assert caught.value.where == "what transformers, eager attention writes"
    assert contents(model) == contents(exported)


# Reports


def test_reports_without_the_newer_fields_are_read(exported: Path, tmp_path: Path) -> None:
    model = copied(exported, tmp_path / "model")
    path = model / "onnx/fp32/report.json"
    newer = ("opset", "device", "differences", "agreement", "checks")
    report = {name: value for name, value in unsealed(path.read_bytes()).items() if name not in newer}
    path.write_bytes(sealed(report))
    stored = ModelFolder.open(model)
    assert {name: stored.exports["fp32"][name] for name in newer} == {
        "opset": 0, "device": "cpu", "differences": {}, "agreement": None, "checks": {},
    }  # fmt: skip
    found = pipeline("ner", model=model, device="cpu")
    assert found.backend == "ONNX Runtime fp32 on the CPU"
    assert found(TEXTS) == pipeline("ner", model=exported, backend="onnx:fp32", device="cpu")(TEXTS)
    del report["engine"]
    path.write_bytes(sealed(report))
    with pytest.raises(ModelError, match=r"report\.json: is damaged .*engine"):
        ModelFolder.open(model)


# X7: heads that cannot be traced

ODD = '''

import torch
from torch import nn
from nlptasks.heads.base import Graph


class Branching(ToyHead):
    """Looks at the numbers to know what to do."""
    contract = 1

    def forward(self, states, batch):
        scores = self.net(states[:, 0])
        return {"scores": scores if scores.sum().item() > 0 else -scores}


class Leaving(ToyHead):
    """Leaves PyTorch."""
    contract = 1

    def forward(self, states, batch):
        return {"scores": torch.from_numpy(self.net(states[:, 0]).numpy())}


class Fork(Graph):
    axes = {"x": (0,)}

    def forward(self, given):
        return {"y": given["x"] if given["x"].sum() > 0 else -given["x"]}

    def samples(self):
        return [{"x": torch.ones(2, 3)}]


class Further(ToyHead):
    """Has a further graph."""
    contract = 1

    def graphs(self):
        return {"fork": Fork()}
'''
REASONS = {
    "branching": "data-dependent expression",
    "leaving": r"numpy\(\) is not supported",
    "further": "data-dependent",
}


@pytest.fixture(scope="module")
def odd_heads(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An installed package with heads that cannot be exported."""
    place = tmp_path_factory.mktemp("site")
    info = place / "oddheads-1.0.dist-info"
    info.mkdir()
    (place / "oddheads" / "sample").mkdir(parents=True)
    (place / "oddheads" / "__init__.py").write_text(TOY + ODD)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: oddheads\nVersion: 1.0\n")
    points = "".join(f"{task} = oddheads:{task.capitalize()}\n" for task in REASONS)
    (info / "entry_points.txt").write_text(f"[nlptasks.heads]\n{points}")
    sys.path.insert(0, str(place))
    yield
    sys.path.remove(str(place))


def with_odd_head(
    stored: ModelFolder, task: str, target: Path, beside: Sequence[str] | None = None
) -> dict[str, bytes]:
    """Write a model with an odd head beside others: its files."""
    model, cls = stored.model(None if beside is None else list(beside)), head_class(task)
    head = cls(cls.configure([], {}), backbone=model.backbone.info)
    records = {**model.records, "odd": HeadRecord(task, recorded(head.config))}
    Model(model.backbone, {**model.heads, "odd": head}, records, model.branches).save(target)
    return contents(target)


@pytest.mark.parametrize("task", ["leaving", "further"])
def test_a_head_that_cannot_be_traced_is_named_with_the_reason(
    odd_heads: None, trained: Path, tmp_path: Path, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "engines", lambda fusions: _PLAIN[:1])
    before = with_odd_head(ModelFolder.open(trained), task, tmp_path / "model")
    done = run("export", tmp_path / "model")
    assert done.exit_code == 6
    last = done.stderr.splitlines()[-1]
    assert re.match(f"error: the head odd: cannot be exported .*{REASONS[task]}", last), done.stderr
    assert not re.search(r"\bner\b", last)
    assert contents(tmp_path / "model") == before
    assert pipeline("ner", model=tmp_path / "model", device="cpu")(TEXTS[0])  # it can still be run


@pytest.fixture(scope="module")
def refused(odd_heads: None, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """What is said of a model whose only head cannot be traced."""
    model = tmp_path_factory.mktemp("odd") / "model"
    with_odd_head(ModelFolder.open(trained), "branching", model, beside=[])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "engines", lambda fusions: _PLAIN[:1])
        return run("export", model)


def test_the_only_head_is_named_as_well(refused: Result) -> None:
    assert refused.exit_code == 6
    last = refused.stderr.splitlines()[-1]
    assert re.match(f"error: the head odd: cannot be exported .*{REASONS['branching']}", last)


def test_only_what_we_say_is_told(refused: Result) -> None:
    begun, first, again, last = refused.stderr.splitlines()
    assert begun == "exporting encode in fp32"
    assert first.startswith("export of encode: transformers, eager attention: ")
    assert again == first  # of the head alone
    assert last.startswith("error: the head odd: ")


def test_an_architecture_that_cannot_be_traced_is_named(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Backbone.forward

    def branching(self: Backbone, batch: Mapping[str, Tensor]) -> Tensor:
        states = forward(self, batch)
        return states if states.sum().item() > 0 else -states

    monkeypatch.setattr(Backbone, "forward", branching)
    monkeypatch.setattr(exporting, "engines", lambda fusions: _PLAIN[:1])
    model = copied(trained, tmp_path / "model")
    with pytest.raises(BackendError, match=r"the architecture bert: cannot be exported .*data-dependent") as caught:
        export(model)
    assert caught.value.exit_code == 6
    assert contents(model) == contents(trained)
