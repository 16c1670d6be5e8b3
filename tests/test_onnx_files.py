"""ONNX files: opened and pruned as an export writes them; any other file is refused in one line or is harmless."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper

from nlptasks.errors import BackendError
from nlptasks.runtimes.onnx import open_session
from nlptasks.runtimes.onnx_pruning import pruned

WEIGHTS = np.array([3.0, 4.0], dtype=np.float32).tobytes()
DATA = "encode.onnx.data"

Change = Callable[[ModelProto, Path], object]
"""Damages a model whose weights are in a folder; if it returns bytes, they are the content of the file instead."""


def outside(name: str, **place: str) -> TensorProto:
    """Return a tensor of two numbers that is stored in another file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, value in ({"location": DATA, "offset": "0", "length": "8"} | place).items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def value(name: str, *shape: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def good_model() -> ModelProto:
    """``ner.sum`` needs the weights, ``mood.same`` does not."""
    nodes = [helper.make_node("Add", ["x", "w"], ["ner.sum"]), helper.make_node("Identity", ["x"], ["mood.same"])]
    outputs = [value("ner.sum", 2), value("mood.same", 2)]
    graph = helper.make_graph(nodes, "graph", [value("x", 2)], outputs, [outside("w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def write(model: ModelProto, folder: Path, change: Change = lambda model, folder: None) -> Path:
    (folder / DATA).write_bytes(WEIGHTS)
    content = change(model, folder)
    path = folder / "encode.onnx"
    path.write_bytes(content if isinstance(content, bytes) else model.SerializeToString())
    return path


# Files that are refused


def placed(**place: str) -> Change:
    """Store the weights elsewhere."""

    def change(model: ModelProto, folder: Path) -> None:
        model.graph.initializer[0].CopyFrom(outside("w", **place))

    return change


def constant(**place: str) -> Change:
    """Read the weights from a node instead."""

    def change(model: ModelProto, folder: Path) -> None:
        del model.graph.initializer[:]
        model.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=outside("w", **place)))

    return change


def branching(**place: str) -> Change:
    """Read the weights from the branches of a node."""

    def change(model: ModelProto, folder: Path) -> None:
        del model.graph.initializer[:]
        inner = helper.make_graph(
            [helper.make_node("Identity", ["v"], ["branch"])],
            "inner",
            [],
            [value("branch", 2)],
            [outside("v", **place)],
        )
        model.graph.node.insert(0, helper.make_node("If", ["yes"], ["w"], then_branch=inner, else_branch=inner))
        model.graph.initializer.append(helper.make_tensor("yes", TensorProto.BOOL, [], [True]))

    return change


def with_node(op: str, *inputs: str, domain: str = "", **attributes: Any) -> Change:
    """Add a node."""

    def change(model: ModelProto, folder: Path) -> None:
        model.graph.node.append(helper.make_node(op, inputs, ["more"], domain=domain, **attributes))
        model.graph.output.append(value("more", 2))
        model.opset_import.append(helper.make_opsetid(domain, 1 if domain else 18))

    return change


def linked(model: ModelProto, folder: Path) -> None:
    """Put the weights outside the folder, with a link to them in it."""
    elsewhere = folder.parent / "elsewhere"
    (folder / DATA).rename(elsewhere)
    (folder / DATA).symlink_to(elsewhere)


def linked_folder(model: ModelProto, folder: Path) -> None:
    elsewhere = folder.parent / "place"
    elsewhere.mkdir()
    (elsewhere / "x").write_bytes(WEIGHTS)
    (folder / "sub").symlink_to(elsewhere)
    placed(location="sub/x")(model, folder)


ESCAPES: dict[str, dict[str, str]] = {
    "parent": {"location": "../secret"},
    "parent of a folder": {"location": "sub/../../secret"},
    "absolute": {"location": "{}/secret"},
    "system": {"location": "/etc/passwd"},
    "memory": {"location": "*/_ORT_MEM_ADDR_/*", "offset": "99"},
}
BAD: dict[str, Change] = {
    "opset 99": lambda m, _: setattr(m.opset_import[0], "version", 99),
    "IR version 99": lambda m, _: setattr(m, "ir_version", 99),
    "empty": lambda *_: b"",
    "random bytes": lambda *_: np.random.default_rng(0).bytes(999),
    "JSON": lambda *_: b'{"irVersion": 10}',
    "truncated": lambda m, _: m.SerializeToString()[:-20],
    "folder that is a symbolic link": linked_folder,
    "no data file": lambda m, f: (f / DATA).unlink(),
    "offset beyond the end": placed(offset="4"),
    "length beyond the end": placed(length="99999999999"),
    "negative offset": placed(offset="-8"),
    "offset no number": placed(offset="all"),
    "unknown domain": with_node("Evil", "x", domain="evil"),
    "compiled code": with_node("EPContext", domain="com.microsoft", embed_mode=0, ep_cache_context="../secret"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for a model, beside a file that it may not read."""
    (tmp_path / "secret").write_bytes(WEIGHTS)
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


def check_refused(path: Path) -> str:
    with pytest.raises(BackendError) as caught:
        open_session(path, "cpu")
    assert caught.value.where == str(path)
    assert caught.value.problem.startswith(f"cannot be opened by ONNX Runtime {onnxruntime.__version__} (")
    assert caught.value.fix == "export the model again, or upgrade ONNX Runtime"
    assert "\n" not in str(caught.value)
    return caught.value.problem


@pytest.mark.parametrize("change", BAD.values(), ids=BAD)
def test_a_bad_file_is_refused_in_one_line(folder: Path, change: Change) -> None:
    check_refused(write(good_model(), folder, change))


@pytest.mark.parametrize("holder", [placed, constant, branching])
@pytest.mark.parametrize("place", ESCAPES.values(), ids=ESCAPES)
def test_weights_outside_the_folder_are_not_read(
    folder: Path, place: dict[str, str], holder: Callable[..., Change]
) -> None:
    where = {key: own.format(folder.parent) for key, own in place.items()}
    path = write(good_model(), folder, holder(**where))
    check_refused(path)
    with pytest.raises(BackendError):
        open_session(path, "cpu", ["ner"])  # as bytes
    assert open_session(write(good_model(), folder, holder()), "cpu")  # it is the place that is refused


@pytest.mark.parametrize(("change", "found"), [("opset 99", "99"), ("IR version 99", "99")])
def test_a_runtime_that_is_too_old_names_the_version(folder: Path, change: str, found: str) -> None:
    assert found in check_refused(write(good_model(), folder, BAD[change]))


def test_a_damaged_file_cannot_be_pruned_either(folder: Path) -> None:
    path = write(good_model(), folder, BAD["random bytes"])
    with pytest.raises(BackendError, match=r"encode\.onnx: cannot be opened by ONNX Runtime"):
        open_session(path, "cpu", ["ner"])


def test_a_file_that_is_missing_is_named(folder: Path) -> None:
    check_refused(folder / "encode.onnx")


# Files that are opened


def test_a_good_graph_is_opened_and_pruned(folder: Path) -> None:
    path = write(good_model(), folder)
    x = np.array([1.0, 2.0], dtype=np.float32)
    assert [found.tolist() for found in open_session(path, "cpu").run(None, {"x": x})] == [[4.0, 6.0], [1.0, 2.0]]
    for head, expected, weights in (("ner", [4.0, 6.0], ["w"]), ("mood", [1.0, 2.0], [])):
        graph = onnx.load_from_string(pruned(path, [head])).graph
        assert [weight.name for weight in graph.initializer] == weights
        [found] = open_session(path, "cpu", [head]).run(None, {"x": x})
        assert found.tolist() == expected


def test_files_may_be_links(folder: Path) -> None:
    """Files of a cache are. The sha256 of each file is checked before, so nothing else can be read."""
    path = write(good_model(), folder, linked)
    for link in (os.link, os.symlink):
        (folder / "link.onnx").unlink(missing_ok=True)
        link(path, folder / "link.onnx")
        (folder / "link.onnx.data").unlink(missing_ok=True)
        (folder / "link.onnx.data").symlink_to(folder / DATA)
    for heads in (None, ["ner"]):
        [found, *_] = open_session(path, "cpu", heads).run(None, {"x": np.zeros(2, dtype=np.float32)})
        assert found.tolist() == [3.0, 4.0]


def test_a_head_whose_name_begins_like_another_is_pruned_apart(folder: Path) -> None:
    def renamed(model: ModelProto, folder: Path) -> None:
        model.graph.node[1].output[0] = model.graph.output[1].name = "ner2.same"

    path = write(good_model(), folder, renamed)
    for head, name in (("ner", "ner.sum"), ("ner2", "ner2.same")):
        assert [output.name for output in open_session(path, "cpu", [head]).get_outputs()] == [name]


def test_what_a_node_leaves_out_connects_it_to_no_other(folder: Path) -> None:
    """An omitted input and an omitted output both have the empty name."""
    path = folder / "encode.onnx"
    nodes = [
        helper.make_node("Clip", ["x", "", "most"], ["ner.y"]),
        helper.make_node("LayerNormalization", ["x", "w"], ["mood.z", "", "deviation"]),
    ]
    weights = [
        helper.make_tensor("most", TensorProto.FLOAT, [], [1.5]),
        helper.make_tensor("w", TensorProto.FLOAT, [2], [3.0, 4.0]),
    ]
    graph = helper.make_graph(nodes, "graph", [value("x", 2)], [value("ner.y", 2), value("mood.z", 2)], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    assert [node.op_type for node in onnx.load_from_string(pruned(path, ["ner"])).graph.node] == ["Clip"]
    [found] = open_session(path, "cpu", ["ner"]).run(None, {"x": np.array([1.0, 2.0], dtype=np.float32)})
    assert found.tolist() == [1.0, 1.5]
