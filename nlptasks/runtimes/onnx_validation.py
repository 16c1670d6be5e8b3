"""Checking an ONNX file before ONNX Runtime sees it: what it holds, where its weights are, and how new it is.

ONNX Runtime does what a graph says, and says little of what it does not like. So a graph may hold only what an export can hold,
and its weights stand in the one file beside it.
"""

from __future__ import annotations

import functools
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import onnx
import onnxruntime
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from nlptasks.errors import BackendError, first_line, listing, quote
from nlptasks.runtimes.providers import CPU, quiet, smallest_graph


class OldRuntimeError(BackendError):
    """The installed ONNX Runtime is older than a graph."""


MAX_BYTES = 32 * 2**20
"""Size of a graph without its weights; exports so far have up to 1.6 MB."""

MAX_NODES = 200_000
"""Nodes of a graph and of the graphs inside it; exports so far have up to 545."""

MAX_DEPTH = 4
"""Graphs inside each other."""

_STANDARD = ("", "ai.onnx")
"""Both names of the standard domain."""

_CONTROL_FLOW = frozenset({"Loop", "Scan", "SequenceMap"})
"""Standard ops that run a graph as often as they are told to; an If runs one of two graphs, once."""

_MICROSOFT = "com.microsoft"
_FUSED = frozenset(
    # what the exporter of transformers writes for a provider, with the fusions of onnxscript
    {"Attention", "BiasGelu", "FastGelu", "FusedMatMul", "Gelu", "GroupQueryAttention", "MoE", "MultiHeadAttention"}
    | {"RotaryEmbedding", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization"}
    # what dynamic quantization makes of it, and the runtime's own fusions, where their graph is kept
    | {"DynamicQuantizeMatMul", "MatMulIntegerToFloat", "QAttention", "QuickGelu"}
)
"""Ops of ONNX Runtime's own that exports have. Of the others, some read files, and some search by graphs of their own."""

_PLACE = ("length", "location", "offset")
"""What a tensor outside the graph says of its place: all of these, once."""

_NUMBER = re.compile("[0-9]{1,18}")
_MARGIN = 10
"""How far ONNX Runtime may be ahead of the onnx package."""

_AGAIN = "export the model again"


def checked_graph(path: Path) -> ModelProto:
    """The graph in an ONNX file, which holds nothing that an export cannot hold.

    Args:
        path: the file; its weights may stand beside it, and are not opened.

    Raises:
        BackendError: it is no such file, or its weights are not in the one file beside it.
    """
    where = str(path)
    model = _parsed(path)
    if model.functions or model.training_info:
        raise BackendError(where, "has functions or training of its own, expected a graph alone", _AGAIN)
    nodes, outside = 0, []
    for graph in _graphs(model.graph, where):
        nodes += len(graph.node)
        if nodes > MAX_NODES:
            raise BackendError(where, f"has {nodes} nodes or more, expected at most {MAX_NODES}", _AGAIN)
        for node in graph.node:
            _check_op(node, where)
        _check_dense(graph, where)
        outside += [tensor for tensor in _tensors(graph) if tensor.external_data or tensor.data_location]
    if outside:
        _check_places(outside, path)
    return model


def _parsed(path: Path) -> ModelProto:
    """What is in a file; its name says nothing of the format, as it would to `onnx.load`."""
    where = str(path)
    size = _size(path, where, "")
    if size > MAX_BYTES:
        raise BackendError(where, f"has {size} bytes, expected at most {MAX_BYTES}", _AGAIN)
    try:
        model = ModelProto.FromString(path.read_bytes())
    except OSError as error:
        raise BackendError(where, f"cannot be read ({error})", _AGAIN) from error
    except Exception as error:  # of protobuf, which is not ours to know
        raise BackendError(where, f"is damaged, or no ONNX file ({first_line(error)})", _AGAIN) from error
    if not (model.ir_version and model.opset_import and model.graph.output):  # anything may parse, even no bytes at all
        raise BackendError(where, "is damaged, or no ONNX file (it has no graph)", _AGAIN)
    names = [model.graph.name, *(output.name for output in model.graph.output)]
    if not all(isinstance(name, str) for name in names):  # bytes, if they are no UTF-8
        raise BackendError(where, "is damaged (a name is no UTF-8)", _AGAIN)
    return model


def _graphs(graph: GraphProto, where: str, depth: int = 0) -> Iterator[GraphProto]:
    """A graph and those inside it, each before its nodes are looked into."""
    if depth > MAX_DEPTH:
        raise BackendError(where, f"has graphs {depth} deep inside each other, expected at most {MAX_DEPTH}", _AGAIN)
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                yield from _graphs(inner, where, depth + 1)


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """The tensors of a graph and of its nodes, those of the graphs inside it left out."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield attribute.t  # an empty one if there is none
            yield from attribute.tensors


def _check_dense(graph: GraphProto, where: str) -> None:
    attributes = (attribute for node in graph.node for attribute in node.attribute)
    if graph.sparse_initializer or any(part.HasField("sparse_tensor") or part.sparse_tensors for part in attributes):
        raise BackendError(where, "has sparse tensors, expected none", _AGAIN)


def _check_op(node: NodeProto, where: str) -> None:
    standard = node.domain in _STANDARD
    if standard and node.op_type in _CONTROL_FLOW:
        raise BackendError(where, f"has the op {node.op_type}, which runs a graph many times, expected none", _AGAIN)
    if not standard and not (node.domain == _MICROSOFT and node.op_type in _FUSED):
        name = f"{quote(node.op_type)} of the domain {quote(node.domain)}"
        raise BackendError(where, f"has the op {name}, expected those of ONNX and of its exports", _AGAIN)


def _check_places(tensors: Sequence[TensorProto], path: Path) -> None:
    """Check that tensors are inside the file that stands beside their graph."""
    where, file = str(path), path.with_name(f"{path.name}.data")
    ends = [_end(tensor, where, file.name) for tensor in tensors]  # before any file is looked for
    size = _size(file, where, f"has its weights in {file.name!r}, which ")
    if max(ends) > size:
        raise BackendError(where, f"needs {max(ends)} bytes of {file.name!r}, which has {size}", _AGAIN)


def _end(tensor: TensorProto, where: str, file: str) -> int:
    """Where a tensor ends in the file of the weights."""
    name = f"the tensor {quote(tensor.name)}"
    entries = [(str(entry.key), str(entry.value)) for entry in tensor.external_data]  # bytes, if they are no UTF-8
    keys = sorted(key for key, _ in entries)
    if tuple(keys) != _PLACE:
        raise BackendError(where, f"has {name} outside the graph by {quote(keys)}, expected {listing(_PLACE)}", _AGAIN)
    place = dict(entries)
    if place["location"] != file:
        raise BackendError(where, f"has {name} in {quote(place['location'])}, expected {file!r}", _AGAIN)
    for key in ("offset", "length"):
        if not _NUMBER.fullmatch(place[key]):
            raise BackendError(where, f"has {name} with {key} {quote(place[key])}, expected a whole number", _AGAIN)
    return int(place["offset"]) + int(place["length"])


def _size(file: Path, where: str, what: str) -> int:
    """The size of a file that is one, and no other name of something else."""
    plain = "copy the folder without links, as 'cp -rL' does"
    try:
        state = file.lstat()
    except OSError as error:
        raise BackendError(where, f"{what}cannot be read ({error})", _AGAIN) from error
    if stat.S_ISLNK(state.st_mode):
        raise BackendError(where, f"{what}is a symbolic link, expected a file", plain)
    if not stat.S_ISREG(state.st_mode):
        raise BackendError(where, f"{what}is of an odd kind, expected a file", _AGAIN)
    if state.st_nlink > 1:
        raise BackendError(where, f"{what}is a hard link, one of {state.st_nlink} names of a file", plain)
    return state.st_size


def check_versions(model: ModelProto, where: str) -> None:
    """Check that ONNX Runtime is new enough for a graph.

    Args:
        model: with the graph.
        where: its file, for the message.

    Raises:
        BackendError: it is older.
    """
    opset = max((entry.version for entry in model.opset_import if entry.domain in _STANDARD), default=0)
    for name, found, newest in (
        ("opset", opset, newest_opset()),
        ("IR version", model.ir_version, newest_ir_version()),
    ):
        if found > newest:
            raise OldRuntimeError(
                where,
                f"has ONNX {name} {found}, and ONNX Runtime {onnxruntime.__version__} reads up to {newest}",
                f"upgrade ONNX Runtime, or {_AGAIN}",
            )


@functools.cache
def newest_opset() -> int:
    """The newest opset that ONNX Runtime reads."""
    return _newest(onnx.defs.onnx_opset_version(), lambda number: smallest_graph(opset=number))


@functools.cache
def newest_ir_version() -> int:
    """The newest version of the format that ONNX Runtime reads."""
    return _newest(onnx.IR_VERSION, lambda number: smallest_graph(ir_version=number))


def _newest(known: int, graph: Callable[[int], bytes]) -> int:
    """The newest version with which it opens a graph: it tells by that alone."""
    return next((number for number in range(known + _MARGIN, 0, -1) if _opens(graph(number))), 0)


def _opens(content: bytes) -> bool:
    try:
        with quiet() as options:
            onnxruntime.InferenceSession(content, options, providers=[CPU])
    except Exception:  # the runtime's exceptions have no common class
        return False
    return True
