"""``nlptasks plugin``."""

from __future__ import annotations

from pathlib import Path

import click

from nlptasks.cli.common import Command, OutputPath, printable


@click.group("plugin")
def command() -> None:
    """Create packages that add tasks."""


@command.command("new", cls=Command)
@click.argument("name")
@click.option(
    "-o", "--output", type=OutputPath(), metavar="DIR", help="the new package's folder  [default: nlptasks-NAME]"
)
def new(name: str, output: Path | None) -> None:
    """Write a package for the task NAME, with a working head, sample data and tests.

    Then change the head to what you need; its comments say how.
    """
    from nlptasks.scaffolding.plugin import new_plugin

    made = new_plugin(name, output)
    shown = printable(str(made.folder))
    click.echo(f"package: {shown}")
    for file in made.files:
        click.echo(f"  {file}{'   the head: begin here' if file == made.head_file else ''}")
    click.echo(f'next:  pip install -e "{shown}[test]"')
    click.echo(f"       nlptasks train {name}")
    click.echo(f'       pytest "{shown}"' if " " in shown else f"       pytest {shown}")
