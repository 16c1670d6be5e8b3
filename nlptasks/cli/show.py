"""``nlptasks show``."""

from __future__ import annotations

from pathlib import Path

import click

from nlptasks.cli.common import Command, metric_lines, printable


@click.command("show", cls=Command)
@click.argument("model")
def command(model: str) -> None:
    """Show what MODEL is made of."""
    from nlptasks.errors import listing
    from nlptasks.exporting import PRECISIONS, export_problem
    from nlptasks.model import ModelFolder

    stored = ModelFolder.open(model)
    backbone = stored.manifest["backbone"]
    click.echo(f"{printable(str(stored.path))}: made with nlptasks {stored.manifest['nlptasks']}")
    click.echo(
        f"backbone {printable(backbone['source'])} ({_megabytes(stored.path / 'backbone')}), "
        f"windows of {backbone['max_tokens']} tokens"
    )
    for name, head in stored.heads(device="meta").items():
        record = stored.records[name]
        size = _megabytes(stored.path / "heads" / f"{name}.safetensors")
        labels = f": {printable(listing(head.labels))}" if head.labels else ""
        click.echo(f"head {name} (task {record.task}, {size}){labels}")
        for part, metrics in record.metrics.items():
            overall = {key: value for key, value in metrics.items() if "." not in key}
            click.echo(f"  {part}:{metric_lines(overall, head.main_metric)[0]}")
    for precision in PRECISIONS:
        click.echo(f"onnx {precision}: {export_problem(stored, precision) or 'fresh'}")


def _megabytes(path: Path) -> str:
    files = path.rglob("*") if path.is_dir() else [path]
    return f"{sum(file.stat().st_size for file in files if file.is_file()) / 1e6:.1f} MB"
