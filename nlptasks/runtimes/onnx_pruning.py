"""Pruning an ONNX graph to the outputs of some heads.

ONNX Runtime runs every node of a graph, whatever outputs are asked for (it ignores `RunOptions.only_execute_path_to_fetches`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from onnx import GraphProto, ModelProto, NodeProto, helper

from nlptasks.runtimes.base import head_in


def pruned(path: Path, heads: Collection[str]) -> bytes:
    """Return the content of an ONNX file with only what the outputs of some heads need. The weights stay in their file."""
    model = ModelProto.FromString(path.read_bytes())
    outputs = [output.name for output in model.graph.output if head_in(output.name) in heads]
    model.graph.CopyFrom(_part(model.graph, outputs))
    content: bytes = model.SerializeToString()
    return content


def _part(graph: GraphProto, outputs: list[str]) -> GraphProto:
    """Return the part of a graph that gives these outputs."""
    made_by = {
        name: node for node in graph.node for name in node.output if name
    }  # an output that is left out has no name
    needed, todo = set(outputs), list(outputs)
    while todo:  # converters do not sort the nodes
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
    """Return the names that a node reads, also in the graphs inside it."""
    yield from node.input
    for attribute in node.attribute:
        for graph in [attribute.g, *attribute.graphs]:
            for (
                inner
            ) in graph.node:  # which make all outputs: ONNX Runtime lets no graph return a value of an outer one
                yield from _read_by(inner)
