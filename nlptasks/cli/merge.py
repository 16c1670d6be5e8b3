"""``nlptasks merge``."""

from __future__ import annotations

from pathlib import Path

import click

from nlptasks.cli.common import Command


@click.command("merge", cls=Command)
@click.argument("models", nargs=-1, required=True, metavar="MODEL MODEL...")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="the new model's folder")
@click.option("--overwrite", is_flag=True, help="replace what is in the output folder")
def command(models: tuple[str, ...], output: Path, overwrite: bool) -> None:
    """Write a model with the heads of several, whose backbones are the same, byte by byte."""
    from nlptasks.models.editing import merge

    merge(models, output, overwrite=overwrite)
    click.echo(f"model: {output}")
    click.echo(f"next:  nlptasks show {output}")
