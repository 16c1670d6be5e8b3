"""``nlptasks show``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from nlptasks.cli.common import Command, metric_lines, printable
from nlptasks.errors import listing

if TYPE_CHECKING:
    from rich.tree import Tree

    from nlptasks.reporting.summary import HeadSummary, ModelSummary


_WIDTH = 1000
"""Width of lines if the output is no terminal: lines are not wrapped."""


@click.command("show", cls=Command)
@click.argument("model")
def command(model: str) -> None:
    """Show the parts of MODEL: shared and owned layers, heads, labels and metrics."""
    from rich.console import Console

    from nlptasks.reporting.summary import show

    found = show(model)
    click.echo(f"{printable(found.folder)}: made with nlptasks {found.nlptasks}")
    width = None if sys.stdout.isatty() else _WIDTH
    Console(file=sys.stdout, highlight=False, width=width).print(_tree(found))
    size = _megabytes(found.bytes)
    click.echo(f"backbone {printable(found.backbone)} ({size}), windows of {found.max_tokens} tokens")
    _show_cost(found)
    for precision, state in found.exports.items():
        click.echo(f"onnx {precision}: {printable(state)}")


def _tree(found: ModelSummary) -> Tree:
    """Return the model as a tree, from the embeddings through shared and owned layers to the heads."""
    from rich.text import Text
    from rich.tree import Tree

    root = shared = Tree(Text("tokens - embeddings"))
    count, below = found.layers, 0
    for depth in sorted({head.own_layers for head in found.heads.values()}, reverse=True):
        if count - depth > below:
            shared = shared.add(Text(f"{_numbers(below + 1, count - depth)} shared"))
            below = count - depth
        for name, head in found.heads.items():
            if head.own_layers == depth:
                place = shared.add(Text(f"{_numbers(count - depth + 1, count)} of {name}")) if depth else shared
                place.add(Text(printable(f"{name}{_described(head)}")))
    return root


def _numbers(first: int, last: int) -> str:
    return f"layer {first}" if first == last else f"layers {first}-{last}"


def _described(head: HeadSummary) -> str:
    """Return a head in one line: task, size, main metric, labels."""
    if head.problem:
        return f": not available: {head.problem}"
    main = head.main_metric
    measured = "".join(
        f", {part} {metric_lines({main: metrics[main]}, main)[0].strip()}"
        for part, metrics in head.metrics.items()
        if main in metrics
    )
    labels = f": {listing(head.labels)}" if head.labels else ""
    return f" (task {head.task}, {_megabytes(head.bytes)}{measured}){labels}"


def _show_cost(found: ModelSummary) -> None:
    """Print the cost of running all heads, relative to one head and to as many models."""
    count, heads = found.layers, len(found.heads)
    if heads < 2 or not count:
        return
    owned = [head.own_layers for head in found.heads.values()]
    run = count - min(owned) + sum(owned)
    click.echo(
        f"one pass for all {heads} heads runs {run} layers: {run / count:.2f} times those of one head, "
        f"{run / (heads * count):.2f} times those of {heads} separate models"
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
