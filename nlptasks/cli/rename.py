"""``nlptasks rename``."""

from __future__ import annotations

import click

from nlptasks.cli.common import Command, printable


@click.command("rename", cls=Command)
@click.argument("model")
@click.argument("old")
@click.argument("new")
def command(model: str, old: str, new: str) -> None:
    """Rename the head OLD of MODEL to NEW, in place."""
    from nlptasks.models.editing import rename_head

    rename_head(model, old, new)
    click.echo(f"{printable(model)}: {old} is now {new}")
