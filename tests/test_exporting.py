"""An export agrees with PyTorch, or is not written; what cannot be exported is named."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from answering import TEXTS, contents, copied, rewritten, run
from click.testing import Result
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
from nlptasks.models.folder import ModelFolder
from nlptasks.models.manifest import HeadRecord
from nlptasks.models.model import Model, load_model
from nlptasks.networks.base import make_network
from nlptasks.pipeline import pipeline
from nlptasks.registry import head_class
from nlptasks.runtimes.base import ENCODE, GraphSpec
from nlptasks.runtimes.onnx import OnnxRuntime
from nlptasks.runtimes.pytorch import TorchRuntime
from nlptasks.storage.atomic import sealed, unsealed

CPU = torch.device("cpu")

# X1: an export agrees with PyTorch, or is not written


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (7, 33), (3, 16), (1, 128), (5, 128)], ids=str)
def test_every_shape_agrees_with_pytorch(both_exported: Path, shape: tuple[int, int]) -> None:
    model = Model.load(both_exported)
    assert model.backbone.info.max_tokens == 128
    runtime = OnnxRuntime({ENCODE: both_exported / "onnx/fp32/encode.onnx"}, device="cpu", precision="fp32")
    batch = random_batch(model.backbone.info, shape, seed=100)  # other tokens than those the export compared
    batch["mask"][1:, max(1, shape[1] // 3) :] = 0  # texts of uneven length
    before = TorchRuntime({ENCODE: model}, CPU).run(ENCODE, batch)
    after = {name: runtime.fetch(value) for name, value in runtime.run(ENCODE, batch).items()}
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        head, _, output = name.partition(".")
        real = batch["mask"] == 1 if "S" in model.outputs[head][output] else slice(None)
        one, two = tensor.numpy()[real], after[name][real]
        np.testing.assert_allclose(one, two, atol=1e-4, rtol=0)
        assert (one.argmax(-1) == two.argmax(-1)).all()


def wrong(graph: Traceable, path: Path) -> None:
    """Write the graph of a model with slightly different weights, and a file that does not belong there."""
    before = [weight.clone() for weight in graph.traced.parameters()]
    with torch.no_grad():
        for weight in graph.traced.parameters():
            weight.mul_(1.01)
        _PLAIN[0].write(graph, path)
        for weight, own in zip(graph.traced.parameters(), before, strict=True):
            weight.copy_(own)
    path.with_name(f"{path.name}.more").touch()


WRONG = Engine("wrong", wrong)


def test_an_engine_whose_outputs_differ_is_skipped(
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
    assert {path.name for path in (model / "onnx/fp32").iterdir()} == {"encode.onnx", "encode.onnx.data", "report.json"}


def test_nothing_is_written_if_the_outputs_of_all_engines_differ(
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
    """Calls a module with named tensors."""

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
        spec=GraphSpec({"x": (None, 4)}, {}),
        counts=lambda name, value, inputs: value,
        labels=frozenset({"y"}),
        base_model=None,
    )


def test_a_precision_whose_outputs_are_not_finite_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "engines", lambda fusions: _PLAIN[:1])
    for number in (np.nan, np.inf):
        broken = replace(PRECISIONS["int8"], convert=partial(rewritten, number=number))
        with pytest.raises(BackendError, match="outputs in int8 are not finite"):
            export_graph(small(), tmp_path / "small.onnx", broken)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "engine",
    [pytest.param(one, id=one.name) for one in engines("cuda")],
)
def test_every_engine_names_the_outputs(tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "engines", lambda fusions: (engine,))
    name, parity = export_graph(small(), tmp_path / "small.onnx", PRECISIONS["fp32"])
    assert (name, parity.agreement) == (engine.name, 1.0)
    assert parity.max_difference < 1e-5
    folders = [str(Path(module.__file__).parents[1]).encode() for module in (nlptasks, torch)]
    for path in tmp_path.iterdir():  # nothing about the machine that exports
        assert not [folder for folder in folders if folder in path.read_bytes()]


def test_parity_is_the_largest_difference_and_the_fraction_of_equal_labels() -> None:
    one = [{"y": np.array([[1.0, 2.0], [3.0, 1.0]]), "z": np.zeros(3)}, {"y": np.empty((0, 2)), "z": np.ones(2)}]
    two = [{"y": np.array([[1.0, 2.0], [3.0, 3.5]]), "z": np.full(3, -4.0)}, {"y": np.empty((0, 2)), "z": np.ones(2)}]
    assert compare(small(), one, two) == Parity(4.0, 0.5, {"": 4.0})
    two[1]["z"] = np.array([1.0, np.nan])
    assert np.isnan(compare(small(), one, two).max_difference)
    assert compare(replace(small(), labels=frozenset()), one, one) == Parity(0.0, None, {"": 0.0})
    three = [Parity(1.0, 0.5, {"a": 1.0}), Parity(2.0, 0.9, {"a": 0.5, "b": 2.0}), Parity(0.1, None)]
    assert worst(three) == Parity(2.0, 0.5, {"a": 1.0, "b": 2.0})
    assert np.isnan(worst([Parity(np.nan, None), Parity(2.0, None)]).max_difference)


def test_differences_are_by_head() -> None:
    one, two = ([{"y": np.array([value])}] for value in (1.0, 3.0))
    assert compare(replace(small(), name="a.step"), one, two).differences == {"a": 2.0}
    one, two = ([{"a.y": np.array([value]), "b.y": np.ones(1)}] for value in (1.0, 3.0))
    assert compare(small(), one, two).differences == {"a": 2.0, "b": 0.0}


# X4: the runtime is older than the graph


def newer(graph: Traceable, path: Path) -> None:
    """Write a graph for a later version of ONNX Runtime."""
    _PLAIN[0].write(graph, path)
    model = onnx.load(path, load_external_data=False)
    model.opset_import[0].version = 99
    path.write_bytes(model.SerializeToString())


def test_a_runtime_that_is_too_old_is_reported_before_anything_is_written(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "engines", lambda fusions: (Engine("newer", newer),))
    model = copied(exported, tmp_path / "model")
    with pytest.raises(BackendError, match=r"cannot be exported in fp32 \(newer: .*[oO]pset 99") as caught:
        export(model)
    assert caught.value.exit_code == 6
    assert contents(model) == contents(exported)


# Reports


def test_a_report_describes_the_graphs(both_exported: Path) -> None:
    report = ModelFolder.open(both_exported).exports["fp32"]
    assert report["outputs"] == Model.load(both_exported).outputs
    assert report["graphs"] == {
        "encode": {
            "sizes": {name: [None, None] for name in ("ids", "mask", "types")},
            "limits": {"ids": 300, "mask": 2, "types": 2},
        }
    }


def without(key: str) -> Callable[[dict[str, Any]], object]:
    return lambda report: report.pop(key)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (without("engine"), "engine"),
        (without("outputs"), "outputs"),
        (lambda report: report.update(outputs={"ner": {"logits": 3}}), "outputs.ner.logits is 3, expected str"),
        (lambda report: report["graphs"]["encode"].pop("limits"), "graphs.encode"),
        (lambda report: report["graphs"]["encode"].update(limits={"ids": "x"}), "graphs.encode.limits.ids is 'x'"),
        (lambda report: report["graphs"]["encode"].update(sizes={"ids": ["x"]}), "a size of the graph 'encode' is 'x'"),
        (lambda report: report["graphs"].update({"../x": {"sizes": {}, "limits": {}}}), "does not list the file of"),
        (lambda report: report.update(max_difference=float("nan")), "has the number nan"),
        (lambda report: report.update(precision="fp16"), "its precision is 'fp16'"),
    ],
)
@pytest.mark.parametrize("is_sealed", [True, False], ids=["changed by hand", "damaged"])
def test_an_export_with_a_wrong_report_is_ignored_with_a_warning(
    exported: Path,
    tmp_path: Path,
    change: Callable[[dict[str, Any]], object],
    problem: str,
    is_sealed: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("WARNING", "nlptasks")
    model = copied(exported, tmp_path / "model")
    path = model / "onnx/fp32/report.json"
    report = unsealed(path.read_bytes())
    change(report)
    path.write_bytes(sealed(report) if is_sealed else path.read_bytes()[:-5])
    found = pipeline("ner", model=model, device="cpu")
    assert found.backend == "PyTorch on the CPU"
    [message] = caplog.messages
    assert message.startswith(f"{path}: is damaged (")
    assert message.endswith(f"; remove {path.parent}, and run nlptasks export")
    assert problem in message or not is_sealed
    with pytest.raises(ModelError, match=r"has no ONNX export in fp32 \(available: none\); run: nlptasks export"):
        pipeline("ner", model=model, backend="onnx", device="cpu")


# A damaged export


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "graph": (r"encode\.onnx: has sha256 .*, expected .*; remove .*fp32, and run: nlptasks export",
              lambda place: flip(place / "encode.onnx")),
    "weights": (r"encode\.onnx\.data: has sha256 ", lambda place: flip(place / "encode.onnx.data")),
    "missing": (r"encode\.onnx\.data: is missing", lambda place: (place / "encode.onnx.data").unlink()),
}  # fmt: skip


@pytest.mark.parametrize(("problem", "damage"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_export_leaves_the_model_usable(
    exported: Path, tmp_path: Path, problem: str, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "nlptasks")
    model = copied(exported, tmp_path / "model")
    damage(model / "onnx/fp32")
    assert pipeline("ner", model=model, backend="torch", device="cpu")(TEXTS)
    assert caplog.messages == []
    found = pipeline("ner", model=model, device="cpu")
    assert found.backend == "PyTorch on the CPU"
    [message] = caplog.messages
    assert message.startswith(f"{model} has a damaged export (")
    assert re.search(problem, message)
    with pytest.raises(ModelError, match=problem):
        pipeline("ner", model=model, backend="onnx", device="cpu")
    export(model)
    assert pipeline("ner", model=model, device="cpu").backend == "ONNX Runtime fp32 on the CPU"


# X7: heads that cannot be traced

ODD = """
from dataclasses import replace

import torch

from nlptasks.backbones.graph import Graph
from nlptasks.heads.ner import NerHead
from nlptasks.networks.token_classifier import TokenClassifier


class BranchingNetwork(TokenClassifier):
    def forward(self, states, batch):
        logits = super().forward(states, batch)["logits"]
        return {"logits": logits if logits.sum().item() > 0 else -logits}


class LeavingNetwork(TokenClassifier):
    def forward(self, states, batch):
        return {"logits": torch.from_numpy(super().forward(states, batch)["logits"].numpy())}


class Fork(Graph):
    axes = {"x": (0,)}

    def forward(self, given):
        return {"y": given["x"] if given["x"].sum() > 0 else -given["x"]}

    def samples(self):
        return [{"x": torch.ones(2, 3)}]


class FurtherNetwork(TokenClassifier):
    def graphs(self):
        return {"fork": Fork()}


class Branching(NerHead):
    schema = replace(NerHead.schema, sample="sample")
    network = "oddheads:BranchingNetwork"  # looks at values to decide what to do


class Leaving(NerHead):
    schema = replace(NerHead.schema, sample="sample")
    network = "oddheads:LeavingNetwork"  # leaves PyTorch


class Further(NerHead):
    schema = replace(NerHead.schema, sample="sample")
    network = "oddheads:FurtherNetwork"  # has a further graph
"""
REASONS = {
    "branching": "data-dependent expression",
    "leaving": r"numpy\(\) is not supported",
    "further": "data-dependent",
}


@pytest.fixture(scope="module")
def odd_heads(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Install a package with heads that cannot be exported."""
    place = tmp_path_factory.mktemp("site")
    info = place / "oddheads-1.0.dist-info"
    info.mkdir()
    (place / "oddheads" / "sample").mkdir(parents=True)
    (place / "oddheads" / "__init__.py").write_text(ODD)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: oddheads\nVersion: 1.0\n")
    points = "".join(f"{task} = oddheads:{task.capitalize()}\n" for task in REASONS)
    (info / "entry_points.txt").write_text(f"[nlptasks.heads]\n{points}")
    sys.path.insert(0, str(place))
    yield
    sys.path.remove(str(place))


def with_odd_head(
    stored: ModelFolder, task: str, target: Path, beside: Sequence[str] | None = None
) -> dict[str, bytes]:
    """Save a model with an odd head beside others, and return its files."""
    model, cls = load_model(stored, None if beside is None else list(beside)), head_class(task)
    head = cls(stored.heads(["ner"])["ner"].config, model.backbone.info)
    network = make_network(cls.network, model.backbone.info, head.network_options())
    records = {**model.records, "odd": HeadRecord(task, recorded(head.config))}
    heads, networks = {**model.heads, "odd": head}, {**model.networks, "odd": network}
    Model(model.backbone, heads, networks, records, model.branches).save(target)
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
    """The messages for a model whose only head cannot be traced."""
    model = tmp_path_factory.mktemp("odd") / "model"
    with_odd_head(ModelFolder.open(trained), "branching", model, beside=[])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "engines", lambda fusions: _PLAIN[:1])
        return run("export", model)


def test_an_only_head_is_named_as_well(refused: Result) -> None:
    assert refused.exit_code == 6
    last = refused.stderr.splitlines()[-1]
    assert re.match(f"error: the head odd: cannot be exported .*{REASONS['branching']}", last)


def test_only_our_own_messages_are_printed(refused: Result) -> None:
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
