"""``nlptasks show``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nlptasks.cli.common import Command, metric_lines, printable

if TYPE_CHECKING:
    from rich.tree import Tree

    from nlptasks.heads.base import Head
    from nlptasks.models.model import ModelFolder


_WIDE = 1000
"""Where no terminal sets a width, lines are not folded."""


@click.command("show", cls=Command)
@click.argument("model")
def command(model: str) -> None:
    """Show what MODEL is made of: the layers that its heads share and own, what they answer and how well."""
    from rich.console import Console

    from nlptasks.exporting.opening import export_problem
    from nlptasks.exporting.precisions import PRECISIONS
    from nlptasks.models.model import ModelFolder

    stored = ModelFolder.open(model)
    known = [name for name in stored.records if not stored.problem_of(name)]
    heads = stored.heads(known, device="meta")
    backbone = stored.manifest["backbone"]
    click.echo(f"{printable(str(stored.path))}: made with nlptasks {stored.manifest['nlptasks']}")
    Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else _WIDE).print(_drawn(stored, heads))
    click.echo(
        f"backbone {printable(backbone['source'])} ({_megabytes(stored.path / 'backbone')}), "
        f"windows of {backbone['max_tokens']} tokens"
    )
    _tell_cost(stored)
    for precision in PRECISIONS:
        click.echo(
            f"onnx {precision}: {export_problem(stored, precision, list(stored.records)) or _proof(stored, precision)}"
        )


def _drawn(stored: ModelFolder, heads: Mapping[str, Head]) -> Tree:
    """The model as a tree: from the embeddings through shared and owned layers to the heads."""
    from rich.text import Text
    from rich.tree import Tree

    records, count = stored.records, _layers(stored)
    root = shared = Tree(Text("tokens - embeddings"))
    below = 0
    for depth in sorted({record.branch for record in records.values()}, reverse=True):
        if count - depth > below:
            shared = shared.add(Text(f"{_numbers(below + 1, count - depth)} shared"))
            below = count - depth
        for name in [name for name, record in records.items() if record.branch == depth]:
            place = shared.add(Text(f"{_numbers(count - depth + 1, count)} of {name}")) if depth else shared
            problem = stored.problem_of(name)
            told = _described(stored, name, heads[name]) if name in heads else f"{name}: cannot be had here: {problem}"
            place.add(Text(printable(told)))
    return root


def _proof(stored: ModelFolder, precision: str) -> str:
    """What is known of a fresh export."""
    from nlptasks.exporting.opening import untaken

    report = stored.exports[precision]
    checks = ", ".join(
        f"{head} {check['metric']} {check['onnx']:.4f} ({check['points']:+.2f} points on {check['rows']} rows)"
        for head, check in report["checks"].items()
    )
    checked = printable(checks) or "checked on no data"
    return ", ".join(filter(None, ["fresh", checked, untaken(stored, precision, list(stored.records))]))


def _numbers(first: int, last: int) -> str:
    return f"layer {first}" if first == last else f"layers {first}-{last}"


def _described(stored: ModelFolder, name: str, head: Head) -> str:
    """A head in one line: task, size, main metric, labels."""
    from nlptasks.errors import listing

    record, main = stored.records[name], head.main_metric
    size = _megabytes(stored.path / "heads" / f"{name}.safetensors")
    measured = "".join(
        f", {part} {metric_lines({main: metrics[main]}, main)[0].strip()}"
        for part, metrics in record.metrics.items()
        if main in metrics
    )
    labels = f": {printable(listing(head.labels))}" if head.labels else ""
    return f"{name} (task {record.task}, {size}{measured}){labels}"


def _tell_cost(stored: ModelFolder) -> None:
    """What one pass for all heads costs, against one head and against as many models."""
    records, count = stored.records, _layers(stored)
    if len(records) < 2 or not count:
        return
    owned = [record.branch for record in records.values()]
    run = count - min(owned) + sum(owned)
    click.echo(
        f"one pass for all {len(records)} heads runs {run} layers: {run / count:.2f} times those of one head, "
        f"{run / (len(records) * count):.2f} times those of {len(records)} separate models"
    )


def _layers(stored: ModelFolder) -> int:
    """Layers of the backbone; 0 if it does not say."""
    return int(getattr(stored.backbone_info().config, "num_hidden_layers", 0))


def _megabytes(path: Path) -> str:
    files = path.rglob("*") if path.is_dir() else [path]
    return f"{sum(file.stat().st_size for file in files if file.is_file()) / 1e6:.1f} MB"
