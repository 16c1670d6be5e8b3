"""Several heads in one pass: each distinct text is read once, and only the wanted heads are run, on both runtimes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

import nlptasks
from nlptasks.config import TrainSettings
from nlptasks.errors import UsageError
from nlptasks.pipeline import Pipeline, pipeline
from nlptasks.runtimes.onnx import open_session
from nlptasks.runtimes.onnx_pruning import pruned
from nlptasks.runtimes.pytorch import TorchRuntime
from nlptasks.text.windows import Tokenizer

TEXTS = ["Ada Smith saw London.", "Bob left Paris and Rome, and saw Berlin.", "", "Cleo saw Rome. " * 40, "Dan"]


def executed_nodes(path: Path, heads: Sequence[str], place: Path) -> int:
    """Return the number of nodes that ONNX Runtime runs for some heads of an export, by its profiler."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(place / "profile")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    session = onnxruntime.InferenceSession(pruned(path, heads), options, providers=["CPUExecutionProvider"])
    ids = np.ones((2, 5), dtype=np.int64)
    session.run(None, {value.name: ids * 0 if value.name == "types" else ids for value in session.get_inputs()})
    events = json.loads(Path(session.end_profiling()).read_text())
    return sum(event["cat"] == "Node" and event["name"].endswith("_kernel_time") for event in events)


def test_onnx_runtime_runs_no_node_of_heads_that_are_not_opened(
    both_exported: Path, exported: Path, tmp_path: Path
) -> None:
    path, single = (place / "onnx/fp32/encode.onnx" for place in (both_exported, exported))
    alone = executed_nodes(single, ["ner"], tmp_path)
    assert executed_nodes(path, ["ner"], tmp_path) == alone
    every = executed_nodes(path, ["ner", "mood", "topic"], tmp_path)
    parts = [executed_nodes(path, [name], tmp_path) for name in ("ner", "mood", "topic")]
    assert max(parts) < executed_nodes(path, ["ner", "topic"], tmp_path) < every < sum(parts)
    # the remaining weights are needed
    whole = len(onnx.load(path, load_external_data=False).graph.initializer)
    for name in ("ner", "mood", "topic"):
        graph = onnx.load_from_string(pruned(path, [name])).graph
        read = {value for node in graph.node for value in node.input}
        assert {weight.name for weight in graph.initializer} <= read
        assert len(graph.initializer) < whole


def test_a_session_is_pruned_to_the_wanted_heads(both_exported: Path) -> None:
    session = open_session(both_exported / "onnx/fp32/encode.onnx", "cpu", ["mood"])
    assert {output.name.partition(".")[0] for output in session.get_outputs()} == {"mood"}
    assert open_session(both_exported / "onnx/fp32/encode.onnx", "cpu").get_outputs()[0].name.startswith("ner.")


def value(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])


def branching(inner: onnx.GraphProto) -> onnx.ModelProto:
    """Return a graph in which only the branches of an If read the value ``double``."""
    condition = helper.make_tensor("", TensorProto.BOOL, [], [True])
    nodes = [
        helper.make_node("Add", ["x", "x"], ["double"]),
        helper.make_node("Constant", [], ["yes"], value=condition),
        helper.make_node("If", ["yes"], ["ner.y"], then_branch=inner, else_branch=inner),
        helper.make_node("Mul", ["x", "weight"], ["mood.z"]),
    ]
    weight = helper.make_tensor("weight", TensorProto.FLOAT, [1], [3.0])
    graph = helper.make_graph(nodes, "graph", [value("x")], [value("ner.y"), value("mood.z")], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize("depth", [0, 1])
def test_values_that_only_a_branch_reads_are_kept(tmp_path: Path, depth: int) -> None:
    inner = helper.make_graph([helper.make_node("Identity", ["double"], ["inner"])], "inner", [], [value("inner")])
    for _ in range(depth):
        branch = helper.make_node("If", ["yes"], ["deep"], then_branch=inner, else_branch=inner)
        inner = helper.make_graph([branch], "outer", [], [value("deep")])
    path = tmp_path / "encode.onnx"
    onnx.save(branching(inner), path)
    for head, expected, initializers in (("ner", 4.0, 0), ("mood", 6.0, 1)):
        content = pruned(path, [head])
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        assert session.run(None, {"x": np.array([2.0], dtype=np.float32)})[0] == expected
        assert len(onnx.load_from_string(content).graph.initializer) == initializers


def test_onnx_runtime_lets_no_branch_return_a_value_of_the_outer_graph() -> None:
    """So pruning need not look at the outputs of inner graphs: nodes inside make them."""
    model = branching(helper.make_graph([], "inner", [], [value("double")]))
    with pytest.raises(Exception, match="is an outer scope value being returned directly"):
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("backend", ["torch", "onnx"])
@pytest.mark.parametrize("names", [["ner", "mood"], ["mood", "topic"], None], ids=str)
def test_results_are_those_of_each_head_alone(both_exported: Path, backend: str, names: list[str] | None) -> None:
    together = pipeline(names, model=both_exported, backend=backend, device="cpu")(TEXTS)
    for name in names or ["ner", "mood", "topic"]:
        alone = pipeline(name, model=both_exported, backend=backend, device="cpu")(TEXTS)
        assert [found[name] for found in together] == alone


def test_no_heads_are_an_error(both: Path) -> None:
    with pytest.raises(UsageError, match="names no head; name one or several, or None for all"):
        pipeline([], model=both)


def test_an_export_with_more_heads_gives_the_same_bits(both_exported: Path, exported: Path) -> None:
    before, after = (pipeline("ner", model=place, backend="onnx", device="cpu") for place in (exported, both_exported))
    assert after(TEXTS) == before(TEXTS)


@pytest.mark.parametrize(
    "name", ["t5", *(pytest.param(name, marks=pytest.mark.slow) for name in ("modernbert", "deberta", "bart"))]
)
def test_heads_that_own_different_layers_are_exported_from_every_kind(
    backbones: Path, moods: Path, tmp_path: Path, name: str
) -> None:
    options: dict[str, Any] = {"epochs": 1, "precision": "fp32", "batch_tokens": 64}
    settings = TrainSettings(backbone=str(backbones / name), tune="top:2", **options)
    nlptasks.train(f"two:sentiment={moods}", output=tmp_path / "model", settings=settings)
    for head, tune in (("one", "top:1"), ("none", "head")):
        nlptasks.train(
            f"{head}:sentiment={moods}", add_to=tmp_path / "model", settings=TrainSettings(tune=tune, **options)
        )
    report = nlptasks.export(tmp_path / "model")
    assert report.max_difference < 1e-4
    torch, onnx = (pipeline(model=tmp_path / "model", backend=backend, device="cpu") for backend in ("torch", "onnx"))
    for one, two in zip(torch(TEXTS), onnx(TEXTS), strict=True):
        assert {name: found.label for name, found in one.items()} == {name: found.label for name, found in two.items()}
        for head in one:
            assert two[head].score == pytest.approx(one[head].score, abs=1e-4)
    for head in ("two", "one", "none"):
        alone = pipeline(head, model=tmp_path / "model", backend="onnx", device="cpu")
        assert [found.label for found in alone(TEXTS)] == [found[head].label for found in torch(TEXTS)]


def counted(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[str, ...], int]]:
    """A list that gets the heads and the rows of every pass that the pipeline runs."""
    passes: list[tuple[tuple[str, ...], int]] = []
    run = TorchRuntime.run

    def counting(self: TorchRuntime, graph: str, inputs: Any, heads: Any = None) -> Any:
        if graph == "encode":
            passes.append((tuple(heads), len(inputs["ids"])))
        return run(self, graph, inputs, heads)

    monkeypatch.setattr(TorchRuntime, "run", counting)
    return passes


def test_each_text_is_read_once_for_all_heads(both: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = pipeline(model=both, backend="torch", device="cpu")
    passes = counted(pipe, monkeypatch)
    sources = 0
    windows = Tokenizer.windows

    def tokenizing(self: Tokenizer, given: Any) -> Any:
        nonlocal sources
        sources += len(given)
        return windows(self, given)

    monkeypatch.setattr(Tokenizer, "windows", tokenizing)
    pipe(["Ada saw Rome.", "Bob left.", "Ada saw Rome."])
    assert sources == 2
    assert passes == [(("ner", "mood", "topic"), 2)]


@pytest.fixture(scope="module")
def writing(backbones: Path, moods: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with heads that read texts in different ways: one classifies a text, one a pair, one generates a text."""
    place = tmp_path_factory.mktemp("writing")
    rows = "".join(json.dumps({"source": f"ada {n}", "target": f"Ada {n}"}) + "\n" for n in range(9))
    (place / "pairs.jsonl").write_text(rows)
    pairs = [{"text": "Ada saw", "text_pair": other, "label": label} for other, label in (("Rome", "yes"), ("a", "no"))]
    (place / "two.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs * 4))
    targets = [
        f"mood:sentiment={moods}",
        f"translation={place / 'pairs.jsonl'}",
        f"pair:classification={place / 'two.jsonl'}",
    ]
    settings = TrainSettings(
        backbone=str(backbones / "bert"), tune="top:1", epochs=1, precision="fp32", batch_tokens=64
    )
    nlptasks.train(targets, output=place / "model", settings=settings)
    return place / "model"


def test_heads_that_generate_text_share_the_pass_over_the_encoder(
    writing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = pipeline(["mood", "translation"], model=writing, backend="torch", device="cpu")
    passes = counted(pipe, monkeypatch)
    together = pipe(["Ada saw Rome.", "Bob left."])
    assert passes == [(("mood", "translation"), 2)]
    for name in ("mood", "translation"):
        alone = pipeline(name, model=writing, backend="torch", device="cpu")(["Ada saw Rome.", "Bob left."])
        assert [found[name] for found in together] == alone


def test_heads_that_read_other_texts_run_on_those_alone(writing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = pipeline(model=writing, backend="torch", device="cpu")
    passes = counted(pipe, monkeypatch)
    found = pipe([{"text": "Ada saw"}, {"text": "Ada saw", "text_pair": "Rome"}])
    assert [set(own) for own in found] == [{"mood", "translation"}, {"translation", "pair"}]
    assert sorted(passes) == [(("mood", "translation"), 1), (("pair",), 1)]


def test_texts_after_a_very_long_one_are_read_together_again(both: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = pipeline("mood", model=both, backend="torch", device="cpu")
    passes = counted(pipe, monkeypatch)
    pipe([" " * 500_000, "Ada saw Rome.", "Bob saw Rome.", "Dan saw Rome.", "Cleo saw Rome."])
    assert passes == [(("mood",), 4)]
