"""An ONNX file is opened as an export writes it, or refused in one line before ONNX Runtime sees it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper

from nlptasks.errors import BackendError
from nlptasks.runtimes import onnx_validation as guarding
from nlptasks.runtimes.onnx import open_session
from nlptasks.runtimes.onnx_pruning import cut

WEIGHTS = np.array([3.0, 4.0], dtype=np.float32).tobytes()
DATA = "model.onnx.data"
NODES = 30
BYTES = 2**14

Change = Callable[[ModelProto, Path], object]
"""Turns a good model, whose weights are in a folder, into a bad one; bytes that it gives are the file instead."""


def outside(name: str, **place: str) -> TensorProto:
    """A tensor of two numbers in another file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, value in ({"location": DATA, "offset": "0", "length": "8"} | place).items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def value(name: str, *shape: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def good_model() -> ModelProto:
    """``sum`` needs the weights, ``same`` does not."""
    nodes = [helper.make_node("Add", ["x", "w"], ["sum"]), helper.make_node("Identity", ["x"], ["same"])]
    graph = helper.make_graph(nodes, "graph", [value("x", 2)], [value("sum", 2), value("same", 2)], [outside("w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def write(model: ModelProto, folder: Path, change: Change = lambda model, folder: None) -> Path:
    (folder / DATA).write_bytes(WEIGHTS)
    content = change(model, folder)
    path = folder / "model.onnx"
    path.write_bytes(content if isinstance(content, bytes) else model.SerializeToString())
    return path


# Bad models


def placed(**place: str) -> Change:
    """With the weights elsewhere."""

    def change(model: ModelProto, folder: Path) -> None:
        model.graph.initializer[0].CopyFrom(outside("w", **place))

    return change


def with_node(op: str, *inputs: str, domain: str = "", **attributes: Any) -> Change:
    """With one more node, whose domain is known."""

    def change(model: ModelProto, folder: Path) -> None:
        model.graph.node.append(helper.make_node(op, inputs, ["more"], domain=domain, **attributes))
        model.opset_import.append(helper.make_opsetid(domain, 1 if domain else 18))

    return change


def inner(node: NodeProto) -> onnx.GraphProto:
    return helper.make_graph([node], "inner", [], [value(node.output[0], 2)])


def branching(graph: onnx.GraphProto) -> NodeProto:
    return helper.make_node("If", ["yes"], ["branch"], then_branch=graph, else_branch=graph)


def with_branches(graph: onnx.GraphProto) -> Change:
    def change(model: ModelProto, folder: Path) -> None:
        model.graph.node.append(branching(graph))
        model.graph.initializer.append(helper.make_tensor("yes", TensorProto.BOOL, [], [True]))

    return change


def nested(depth: int) -> onnx.GraphProto:
    graph = inner(helper.make_node("Identity", ["x"], ["branch"]))
    for _ in range(depth):
        graph = inner(branching(graph))
    return graph


def with_function(model: ModelProto, folder: Path) -> None:
    node, opset = helper.make_node("Identity", ["a"], ["b"]), helper.make_opsetid("", 18)
    model.functions.append(helper.make_function("own", "F", ["a"], ["b"], [node], [opset]))


def constant(**attribute: Any) -> NodeProto:
    return helper.make_node("Constant", [], ["branch"], **attribute)


SPARSE = helper.make_sparse_tensor(
    helper.make_tensor("s", TensorProto.FLOAT, [1], [1.0]), helper.make_tensor("", TensorProto.INT64, [1], [0]), [2]
)


def linked(link: Callable[[Path, Path], object]) -> Change:
    """With the weights outside the folder, and a link to them in it."""

    def change(model: ModelProto, folder: Path) -> None:
        elsewhere = folder.parent / "elsewhere"
        (folder / DATA).rename(elsewhere)
        link(elsewhere, folder / DATA)

    return change


def in_a_folder(model: ModelProto, folder: Path) -> None:
    (folder / DATA).unlink()
    (folder / DATA).mkdir()


def no_utf8(word: bytes) -> Change:
    return lambda model, folder: model.SerializeToString().replace(word, b"\xff" * len(word))


BAD: dict[str, tuple[str, Change]] = {
    # versions
    "opset 99": (
        r"has ONNX opset 99, and ONNX Runtime \S+ reads up to \d+; upgrade ONNX Runtime, or export the model again",
        lambda m, _: setattr(m.opset_import[0], "version", 99),
    ),
    "second opset 99": ("opset 99, and", lambda m, _: m.opset_import.append(helper.make_opsetid("ai.onnx", 99))),
    "IR version 99": (
        r"has ONNX IR version 99, and ONNX Runtime \S+ reads up to \d+; upgrade",
        lambda m, _: setattr(m, "ir_version", 99),
    ),
    # files
    "empty": (r"is damaged, or no ONNX file \(it has no graph\)", lambda *_: b""),
    "random bytes": ("is damaged, or no ONNX file", lambda *_: np.random.default_rng(0).bytes(999)),
    "JSON": ("is damaged, or no ONNX file", lambda *_: b'{"irVersion": 10}'),
    "truncated": ("is damaged, or no ONNX file", lambda m, _: m.SerializeToString()[:-20]),
    "no outputs": ("it has no graph", lambda m, _: m.graph.ClearField("output")),
    "no UTF-8": ("a name is no UTF-8", no_utf8(b"same")),
    "too large": (f"has {BYTES + 1} bytes, expected at most {BYTES}", lambda *_: bytes(BYTES + 1)),
    # where weights are
    "location ../": ("the tensor 'w' in '../x', expected 'model.onnx.data'", placed(location="../x")),
    "location ./": ("in './model.onnx.data', expected", placed(location=f"./{DATA}")),
    "location of the system": ("in '/etc/passwd', expected 'model.onnx.data'", placed(location="/etc/passwd")),
    "location in memory": ("_ORT_MEM_ADDR_", placed(location="*/_ORT_MEM_ADDR_/*", offset="99")),
    "location with NUL": (r"in 'model\.onnx\.data\\x00'", placed(location=f"{DATA}\0")),
    "other location": ("in 'other.data', expected 'model.onnx.data'", placed(location="other.data")),
    "location that is no UTF-8": ("expected 'model.onnx.data'", no_utf8(DATA.encode())),
    "key that is no UTF-8": ("expected length, location, offset", no_utf8(b"offset")),
    "no location": ("in '', expected 'model.onnx.data'", placed(location="")),
    "no data file": ("has its weights in 'model.onnx.data', which cannot be read", lambda m, f: (f / DATA).unlink()),
    "symbolic link": ("'model.onnx.data', which is a symbolic link", linked(lambda to, at: at.symlink_to(to))),
    "hard link": ("which is a hard link, one of 2 names", linked(lambda to, at: os.link(to, at))),
    "folder": ("which is of an odd kind, expected a file", in_a_folder),
    "offset beyond the end": ("needs 9 bytes of 'model.onnx.data', which has 8", placed(offset="1")),
    "length beyond the end": ("needs 99999999999 bytes", placed(length="99999999999")),
    "offset beyond 64 bits": (f"with offset '{2**64}', expected a whole", placed(offset=f"{2**64}")),
    "negative offset": ("with offset '-8', expected a whole number", placed(offset="-8")),
    "negative length": ("with length '-1', expected a whole number", placed(length="-1")),
    "offset no number": ("with offset '0x0', expected a whole number", placed(offset="0x0")),
    "length no UTF-8": ("expected a whole number", lambda m, f: (
        placed(length="12345678")(m, f), no_utf8(b"12345678")(m, f))[1]),
    "length no number": ("with length 'all', expected a whole number", placed(length="all")),
    "unknown key": ("by .*'checksum'.* expected length, location, offset", placed(checksum="0")),
    "key twice": (
        "'location', 'location'",
        lambda m, _: m.graph.initializer[0].external_data.add(key="location", value="x"),
    ),
    "no length": ("by .'location', 'offset'., expected", lambda m, _: m.graph.initializer[0].external_data.pop()),
    "not said to be outside": ("in '../x', expected", lambda m, _: (
        placed(location="../x")(m, _), m.graph.initializer[0].ClearField("data_location"))),
    "in a constant": ("in '../x', expected", with_node("Constant", value=outside("c", location="../x"))),
    "in a constant of a branch": (
        "in '../x', expected", with_branches(inner(constant(value=outside("c", location="../x"))))),
    "in a branch": ("in '../x', expected", with_branches(helper.make_graph(
        [constant(value_float=1.0)], "inner", [], [value("branch")], [outside("c", location="../x")]))),
    "in a list of tensors": ("in '../x', expected", with_node("Identity", "x", odd=[outside("c", location="../x")])),
    "in a list of graphs": ("in '../x', expected", with_node(
        "Identity", "x", odd=[inner(constant(value=outside("c", location="../x")))])),
    # what is in a graph
    "unknown domain": ("has the op 'Evil' of the domain 'evil'", with_node("Evil", "x", domain="evil")),
    "domain of fusions": ("of the domain 'ai.onnx.ml'", with_node("Normalizer", "x", domain="ai.onnx.ml")),
    "unknown op": ("has the op 'EPContext' of the domain 'com.microsoft'", with_node(
        "EPContext", domain="com.microsoft", embed_mode=0, ep_cache_context="../x")),
    "unknown domain in a branch": ("of the domain 'evil'", with_branches(
        inner(helper.make_node("Evil", [], ["branch"], domain="evil")))),
    "function": ("has functions or training", with_function),
    "training": ("has functions or training", lambda m, _: m.training_info.add()),
    "loop": ("has the op Loop, which runs a graph many times", with_node("Loop", "", "", body=nested(0))),
    "loop by its long name": ("has the op Loop", with_node("Loop", "", "", domain="ai.onnx", body=nested(0))),
    "scan": ("has the op Scan", with_node("Scan", "x", body=nested(0), num_scan_inputs=1)),
    "too many nodes": (f"has {NODES + 2} nodes or more, expected at most {NODES}", lambda m, _: [
        m.graph.node.add(op_type="Identity", input=["x"], output=[f"y{n}"]) for n in range(NODES)]),
    "too many nodes in branches": (f"expected at most {NODES}", with_branches(helper.make_graph(
        [helper.make_node("Identity", ["x"], [f"y{n}"]) for n in range(NODES // 2)], "inner", [], [value("y0", 2)]))),
    "too deep": ("has graphs 5 deep inside each other, expected at most 4", with_branches(nested(guarding.MAX_DEPTH))),
    "sparse weight": ("has sparse tensors", lambda m, _: m.graph.sparse_initializer.append(SPARSE)),
    "sparse constant": ("has sparse tensors", with_node("Constant", sparse_value=SPARSE)),
}  # fmt: skip


@pytest.fixture(scope="module")
def opened() -> Iterator[list[str]]:
    """The names of all files that Python opens; empty it first."""
    names: list[str] = []
    watching = True

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if watching and event == "open" and isinstance(args[0], str | bytes | os.PathLike):
            names.append(os.fsdecode(args[0]))

    sys.addaudithook(hook)  # there is no taking it away
    yield names
    watching = False


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What ONNX Runtime is given, which it does not get to see."""
    given: list[object] = []
    assert guarding.newest_opset() >= 20  # asked now: this opens graphs of its own
    assert guarding.newest_ir_version() >= 10
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda content, *args, **options: given.append(content))
    return given


@pytest.mark.parametrize(("message", "change"), BAD.values(), ids=BAD)
def test_a_bad_file_is_refused_before_onnx_runtime_sees_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    opened: list[str],
    sessions: list[object],
    message: str,
    change: Change,
) -> None:
    monkeypatch.setattr(guarding, "MAX_NODES", NODES)
    monkeypatch.setattr(guarding, "MAX_BYTES", BYTES)
    folder = tmp_path / "model"
    folder.mkdir()
    path = write(good_model(), folder, change)
    opened.clear()
    with pytest.raises(BackendError, match=message) as caught:
        open_session(path, "cpu")
    assert sessions == []
    assert [name for name in opened if name.startswith(str(tmp_path))] in ([], [str(path)])
    assert caught.value.where == str(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(BackendError, match=message):
        cut(path, lambda name: name == "same")  # which needs no weights


def test_a_flipped_bit_is_refused_in_one_line_or_passes(tmp_path: Path) -> None:
    path = write(good_model(), tmp_path, with_branches(inner(constant(value=outside("c")))))
    content, refused = path.read_bytes(), []
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            cut(path, lambda name: name == "same")
        except BackendError as error:  # and nothing else
            refused.append(str(error))
    assert len(refused) > len(content) / 2
    assert not any("\n" in message for message in refused)


@pytest.mark.parametrize("link", [os.symlink, os.link, lambda to, at: os.mkfifo(at)], ids=["symbolic", "hard", "pipe"])
def test_a_graph_that_is_no_file_of_its_own_is_refused(
    tmp_path: Path, sessions: list[object], link: Callable[[Path, Path], object]
) -> None:
    path = tmp_path / "link.onnx"
    link(write(good_model(), tmp_path), path)
    with pytest.raises(BackendError, match=r"link\.onnx: is (a symbolic link|a hard link|of an odd kind)"):
        open_session(path, "cpu")
    assert sessions == []


def test_a_good_graph_is_opened_and_cut(tmp_path: Path) -> None:
    path = write(good_model(), tmp_path)
    x = np.array([1.0, 2.0], dtype=np.float32)
    assert cut(path, lambda name: True) == str(path)
    assert [found.tolist() for found in open_session(path, "cpu").run(None, {"x": x})] == [[4.0, 6.0], [1.0, 2.0]]
    for name, expected, weights in (("sum", [4.0, 6.0], ["w"]), ("same", [1.0, 2.0], [])):
        content = cut(path, lambda output, name=name: output == name)  # type: ignore[misc]
        graph = onnx.load_from_string(content).graph
        assert [weight.name for weight in graph.initializer] == weights
        [found] = open_session(path, "cpu", lambda output, name=name: output == name).run(None, {"x": x})  # type: ignore[misc]
        assert found.tolist() == expected


@pytest.mark.parametrize(
    "change",
    [
        lambda model, folder: setattr(model.opset_import[0], "domain", "ai.onnx"),
        with_branches(nested(guarding.MAX_DEPTH - 1)),
        with_branches(inner(constant(value=outside("c")))),
        with_node("Gelu", "x", domain="com.microsoft"),
    ],
    ids=["long name", "deep", "constant outside", "fused"],
)
def test_what_an_export_can_hold_passes(tmp_path: Path, change: Change) -> None:
    path = write(good_model(), tmp_path, change)
    assert [output.name for output in guarding.checked_graph(path).graph.output] == ["sum", "same"]


def test_the_newest_versions_are_what_onnx_runtime_opens() -> None:
    opset, ir_version = guarding.newest_opset(), guarding.newest_ir_version()
    model = good_model()
    model.opset_import[0].version, model.ir_version = opset, ir_version
    guarding.check_versions(model, "model.onnx")
    for newer in ("opset", "IR version"):
        model.opset_import[0].version, model.ir_version = opset + (newer == "opset"), ir_version + (newer != "opset")
        with pytest.raises(BackendError, match=f"model.onnx: has ONNX {newer} .*{onnxruntime.__version__} reads up to"):
            guarding.check_versions(model, "model.onnx")
