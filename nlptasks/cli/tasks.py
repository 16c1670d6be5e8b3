"""``nlptasks tasks``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from nlptasks.cli.common import Command, printable
from nlptasks.cli.options import limits_of, to_text
from nlptasks.config import default_of, settings_of
from nlptasks.errors import NlptasksError, PluginError, UsageError, quote

if TYPE_CHECKING:
    from nlptasks.registry import Registration


@click.command("tasks", cls=Command)
@click.argument("task", required=False)
@click.option("--check", is_flag=True, help="import the packages and report which work; exit code 7 if one does not")
def command(task: str | None, check: bool) -> None:
    """List the registered tasks with their packages, or the options of one TASK.

    Without --check no package is imported. NLPTASKS_PLUGINS lists the allowed packages, separated by commas.
    """
    if task is not None and check:
        raise UsageError("--check", f"checks all tasks, but {task!r} is named", "remove one of the two")
    if task is None:
        _list(check=check)
    else:
        _show(task)


def _list(*, check: bool) -> None:
    from nlptasks.registry import registered

    found = [(one, _problem(one, check=check)) for one in registered()]
    rows = [(one.task, one.package, one.point.value, _state(one, problem, check=check)) for one, problem in found]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        cells = [f"{printable(cell):{width}}" for cell, width in zip(row, widths, strict=False)]
        click.echo("  ".join([*cells, printable(row[-1])]))
    broken = [one.task for one, problem in found if problem and one.enabled]
    if check and broken:
        raise PluginError(
            "--check",
            f"{len(broken)} of {len(rows)} tasks cannot be used ({', '.join(broken)})",
            "see the list for the reasons",
        )


def _problem(one: Registration, *, check: bool) -> str:
    """Return why a task cannot be used and what to do; without a check, as far as its package's metadata tell."""
    if one.problem:
        return f"{one.problem}; {one.fix}"
    if not check:
        return "" if one.is_there() else f"has no module {quote(one.path)}; install {one.distribution} again"
    try:
        one.head_class()
    except NlptasksError as error:
        return f"{error.problem}; {error.fix}"
    return ""


def _state(one: Registration, problem: str, *, check: bool) -> str:
    if problem:
        return f"broken: {problem}" if one.enabled else problem
    return "works" if check else "installed"


def _show(task: str) -> None:
    from nlptasks.registry import head_class

    cls = head_class(task)
    summary = (cls.__doc__ or "").strip().partition("\n")[0]
    click.echo(f"{task}: {summary}")
    click.echo(f"fields: {', '.join(cls.schema.fields)}")
    click.echo(f"files: {', '.join(suffix for suffix in cls.schema.formats if suffix)} (also .gz)")
    for item in settings_of(cls.Config):
        limits = f" ({found})" if (found := limits_of(cls.Config, item)) else ""
        click.echo(f"  --set {task}.{item.name}={to_text(default_of(item))}   {item.metadata['doc']}{limits}")
