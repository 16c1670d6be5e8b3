"""``nlptasks show``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from nlptasks.cli.common import Command, metric_lines, printable

if TYPE_CHECKING:
    from pathlib import Path

    from rich.tree import Tree

    from nlptasks.backbones.info import BackboneInfo
    from nlptasks.heads.base import AnyHead
    from nlptasks.models.folder import ModelFolder


_WIDTH = 1000
"""Width of lines if the output is no terminal: lines are not wrapped."""


@click.command("show", cls=Command)
@click.argument("model")
def command(model: str) -> None:
    """Show the parts of MODEL: shared and owned layers, heads, labels and metrics."""
    from rich.console import Console

    from nlptasks.exporting.precisions import PRECISIONS
    from nlptasks.exporting.sources import export_problem
    from nlptasks.models.folder import ModelFolder

    stored = ModelFolder.open(model)
    heads = stored.heads([name for name in stored.records if not stored.problem_of(name)])
    backbone = stored.backbone_info()
    layers = _layers(backbone)
    click.echo(f"{printable(str(stored.path))}: made with nlptasks {stored.manifest['nlptasks']}")
    width = None if sys.stdout.isatty() else _WIDTH
    Console(file=sys.stdout, highlight=False, width=width).print(_tree(stored, heads, layers))
    click.echo(
        f"backbone {printable(backbone.source)} ({_megabytes(stored.path / 'backbone')}), "
        f"windows of {backbone.max_tokens} tokens"
    )
    _show_cost(stored, layers)
    for precision in PRECISIONS:
        click.echo(
            f"onnx {precision}: {export_problem(stored, precision, list(stored.records)) or _checks(stored, precision)}"
        )


def _tree(stored: ModelFolder, heads: Mapping[str, AnyHead], count: int) -> Tree:
    """Return the model as a tree, from the embeddings through shared and owned layers to the heads."""
    from rich.text import Text
    from rich.tree import Tree

    from nlptasks.models.editing import read_logs

    records, logs = stored.records, read_logs(stored)
    root = shared = Tree(Text("tokens - embeddings"))
    below = 0
    for depth in sorted({record.branch for record in records.values()}, reverse=True):
        if count - depth > below:
            shared = shared.add(Text(f"{_numbers(below + 1, count - depth)} shared"))
            below = count - depth
        for name in [name for name, record in records.items() if record.branch == depth]:
            place = shared.add(Text(f"{_numbers(count - depth + 1, count)} of {name}")) if depth else shared
            if name in heads:
                main = str(logs.get(name, {}).get("main_metric", ""))
                shown = _described(stored, name, heads[name].presenter.labels, main)
            else:
                shown = f"{name}: not available: {stored.problem_of(name)}"
            place.add(Text(printable(shown)))
    return root


def _checks(stored: ModelFolder, precision: str) -> str:
    """Return the checks of a fresh export."""
    from nlptasks.exporting.sources import auto_skip_reason

    report = stored.exports[precision]
    checks = ", ".join(
        f"{head} {check['metric']} {check['exported']:.4f} ({check['points']:+.2f} points on {check['rows']} rows)"
        for head, check in report["checks"].items()
    )
    checked = printable(checks) or "checked on no data"
    return ", ".join(filter(None, ["fresh", checked, auto_skip_reason(stored, precision, list(stored.records))]))


def _numbers(first: int, last: int) -> str:
    return f"layer {first}" if first == last else f"layers {first}-{last}"


def _described(stored: ModelFolder, name: str, labels: tuple[str, ...], main: str) -> str:
    """Return a head in one line: task, size, main metric, labels."""
    from nlptasks.errors import listing

    record = stored.records[name]
    size = _megabytes(stored.path / "heads" / f"{name}.safetensors")
    measured = "".join(
        f", {part} {metric_lines({main: metrics[main]}, main)[0].strip()}"
        for part, metrics in record.metrics.items()
        if main in metrics
    )
    shown = f": {printable(listing(labels))}" if labels else ""
    return f"{name} (task {record.task}, {size}{measured}){shown}"


def _show_cost(stored: ModelFolder, count: int) -> None:
    """Print the cost of running all heads, relative to one head and to as many models."""
    records = stored.records
    if len(records) < 2 or not count:
        return
    owned = [record.branch for record in records.values()]
    run = count - min(owned) + sum(owned)
    click.echo(
        f"one pass for all {len(records)} heads runs {run} layers: {run / count:.2f} times those of one head, "
        f"{run / (len(records) * count):.2f} times those of {len(records)} separate models"
    )


def _layers(backbone: BackboneInfo) -> int:
    """Return the number of layers of a backbone, or 0 if its config has none."""
    from nlptasks.backbones.architecture import hf_config

    return int(getattr(hf_config(backbone), "num_hidden_layers", 0))


def _megabytes(path: Path) -> str:
    files = path.rglob("*") if path.is_dir() else [path]
    return f"{sum(file.stat().st_size for file in files if file.is_file()) / 1e6:.1f} MB"
