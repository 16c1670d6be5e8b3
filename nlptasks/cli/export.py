"""``nlptasks export``."""

from __future__ import annotations

import click

from nlptasks.cli.common import Command


@click.command("export", cls=Command)
@click.argument("model")
@click.option("--precision", type=click.Choice(["fp32"]), default="fp32", show_default=True, help="of the weights")
def command(model: str, precision: str) -> None:
    """Export MODEL to ONNX, checked against PyTorch, into its folder onnx/."""
    from nlptasks.exporting import export

    report = export(model, precision=precision)
    click.echo(
        f"exported {model} in {precision}: outputs differ from PyTorch's by {report.max_difference:.1e} at most, "
        f"over {len(report.shapes)} shapes"
    )
