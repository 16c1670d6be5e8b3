"""``nlptasks remove``."""

from __future__ import annotations

import click

from nlptasks.cli.common import Command, printable


@click.command("remove", cls=Command)
@click.argument("model")
@click.argument("head")
def command(model: str, head: str) -> None:
    """Remove HEAD from MODEL, in place."""
    from nlptasks.models.editing import remove_head

    remove_head(model, head)
    click.echo(f"{printable(model)}: {head} is removed")
