"""``nlptasks merge``."""

from __future__ import annotations

from pathlib import Path

import click

from nlptasks.cli.common import Command, output_option, overwrite_option, printable


@click.command("merge", cls=Command)
@click.argument("models", nargs=-1, required=True, metavar="MODEL MODEL...")
@output_option
@overwrite_option
def command(models: tuple[str, ...], output: Path, overwrite: bool) -> None:
    """Write a model with the heads of several models. Their backbones must be identical, byte by byte."""
    from nlptasks.models.editing import merge_models

    merge_models(models, output, overwrite=overwrite)
    click.echo(f"model: {printable(str(output))}")
    click.echo(f"next:  nlptasks show {printable(str(output))}")
