"""``nlptasks doctor``."""

from __future__ import annotations

import click

from nlptasks.cli.common import Command


@click.command("doctor", cls=Command)
def command() -> None:
    """Show versions, devices and runtimes, and their problems."""
    from nlptasks.reporting.diagnosis import doctor

    for line in doctor():
        click.echo(line)
