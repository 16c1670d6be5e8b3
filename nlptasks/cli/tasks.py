"""``nlptasks tasks``."""

from __future__ import annotations

import click

from nlptasks.cli.common import Command
from nlptasks.config import default_of, limits_of, settings_of


@click.command("tasks", cls=Command)
@click.argument("task", required=False)
def command(task: str | None) -> None:
    """List the registered tasks, or the options of one TASK."""
    from nlptasks.registry import head_class, package, tasks

    if task is None:
        for name, point in tasks().items():
            click.echo(f"{name:20} {package(point):24} {point.value}")
        return
    cls = head_class(task)
    summary = (cls.__doc__ or "").strip().partition("\n")[0]
    click.echo(f"{task}: {summary}  main metric: {cls.main_metric}")
    click.echo(f"files: {', '.join(suffix for suffix in cls.formats if suffix)} (also .gz)")
    for item in settings_of(cls.Config):
        limits = f" ({limits_of(item)})" if limits_of(item) else ""
        click.echo(f"  --set {task}.{item.name}={default_of(item)}   {item.metadata['doc']}{limits}")
