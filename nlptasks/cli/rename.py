"""``nlptasks rename``."""

from __future__ import annotations

import click

from nlptasks.cli.common import Command


@click.command("rename", cls=Command)
@click.argument("model")
@click.argument("old")
@click.argument("new")
def command(model: str, old: str, new: str) -> None:
    """Give the head OLD of MODEL the name NEW, in place."""
    from nlptasks.models.editing import rename

    rename(model, old, new)
    click.echo(f"{model}: {old} is now {new}")
