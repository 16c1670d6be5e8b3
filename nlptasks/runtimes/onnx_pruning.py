"""Cutting an ONNX graph to some of its outputs, because ONNX Runtime runs every node that there is.

(It takes no notice of `RunOptions.only_execute_path_to_fetches`.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from onnx import GraphProto, NodeProto, helper

from nlptasks.errors import BackendError
from nlptasks.runtimes.onnx_validation import check_versions, checked_graph


def cut(path: Path, wanted: Callable[[str], bool]) -> str | bytes:
    """An ONNX file with what it takes to give the wanted outputs.

    Args:
        path: the file; its weights may stand beside it.
        wanted: says of an output's name whether it is.

    Returns:
        The path if all are, else the content of a smaller file, whose weights still stand beside the first.

    Raises:
        BackendError: the file holds what no export holds, gives nothing that is wanted, or is newer than ONNX Runtime.
    """
    model = checked_graph(path)
    check_versions(model, str(path))
    kept = [output for output in model.graph.output if wanted(output.name)]
    if not kept:
        raise BackendError(str(path), "gives nothing of what is wanted", "export the model again")
    if len(kept) == len(model.graph.output):
        return str(path)
    model.graph.CopyFrom(_cut(model.graph, [output.name for output in kept]))
    content: bytes = model.SerializeToString()
    return content


def _cut(graph: GraphProto, outputs: list[str]) -> GraphProto:
    """The part of a graph that gives these outputs."""
    made_by = {name: node for node in graph.node for name in node.output if name}  # what is left out has an empty name
    needed, todo = set(outputs), list(outputs)
    while todo:  # from node to node: a node may stand before those that it reads, as converters leave them
        node = made_by.get(todo.pop())
        new = set(filter(None, _read_by(node))) - needed if node else ()
        needed.update(new)
        todo += new
    return helper.make_graph(
        [node for node in graph.node if needed.intersection(node.output)],
        graph.name,
        [value for value in graph.input if value.name in needed],
        [value for value in graph.output if value.name in outputs],
        [value for value in graph.initializer if value.name in needed],
        value_info=[value for value in graph.value_info if value.name in needed],
    )


def _read_by(node: NodeProto) -> Iterator[str]:
    """The names that a node reads, those in the graphs inside it too."""
    yield from node.input
    for attribute in node.attribute:
        for graph in [attribute.g, *attribute.graphs]:
            for inner in graph.node:
                yield from _read_by(inner)
            yield from (output.name for output in graph.output)  # which may be a value from outside
