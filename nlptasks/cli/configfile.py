"""``--config FILE.toml``: options of a command from a file."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from nlptasks.cli.options import Given
from nlptasks.errors import UsageError, did_you_mean, quote

_TABLES = "nlptasks.config"


def read_config(context: click.Context, parameter: click.Parameter, path: Path | None) -> None:
    """Use a file as the defaults of the command's options. The command line overrides it.

    Keys are the long names of options (``batch_tokens`` or ``batch-tokens``). The tables ``[columns]`` and ``[heads.HEAD]`` are
    ``--columns`` and ``--set HEAD.OPTION=VALUE``; columns and options of the command line are added to them.

    Raises:
        click.UsageError: the file cannot be read, is no TOML, or has a key that is no option.
    """
    if path is None:
        return
    try:
        defaults = _defaults(path, context.command)
        context.meta[_TABLES] = {name: defaults.pop(name) for name in ("columns", "set") if name in defaults}
    except UsageError as error:
        raise click.UsageError(str(error), context) from error
    except RecursionError as error:
        problem = UsageError(f"--config {path}", "is nested too deeply", "write options and tables, as in --help")
        raise click.UsageError(str(problem), context) from error
    context.default_map = {**(context.default_map or {}), **defaults}


def added(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """Return the parts of an option from the file and then those from the command line, which override them."""
    before = context.meta.get(_TABLES, {}).get(_long_name(parameter))
    if not before:
        return value
    return (*before, *value) if isinstance(value, tuple) else ",".join(filter(None, (before, value)))


def _defaults(path: Path, command: click.Command) -> dict[str, Any]:
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"--config {path}", f"cannot be read ({error})", "pass a TOML file") from error
    options = {
        _long_name(item): item for item in command.params if isinstance(item, click.Option) and item.expose_value
    }
    defaults: dict[str, Any] = {}
    for key, value in given.items():
        name = key.replace("_", "-")
        if key == "heads":
            defaults["set"] = (*defaults.get("set", ()), *_head_options(value, path))
        elif name == "set":
            texts = map(str, value if isinstance(value, list) else [value])
            defaults["set"] = (*defaults.get("set", ()), *texts)
        elif name in options:
            typed = options[name].type is click.UNPROCESSED
            defaults[options[name].name or name] = _flat(value, f"{path}: {key}") if typed else _joined(value)
        else:
            raise UsageError(f"{path}: {key}", "is no option", did_you_mean(name, [*options, "heads"]))
    return defaults


def _long_name(option: click.Parameter) -> str:
    return max(option.opts, key=len).removeprefix("--")


def _head_options(heads: Any, path: Path) -> Iterator[Given]:
    """Return ``HEAD.OPTION`` and its value for each entry of the tables ``[heads.HEAD]``."""
    tables = heads if isinstance(heads, dict) else {"HEAD": heads}
    for head, table in tables.items():
        if not isinstance(table, dict):
            raise UsageError(
                f"{path}: heads.{head}", f"is {quote(table)}", f"write [heads.{head}] and its options below"
            )
        for name, value in table.items():
            yield f"{head}.{name}", _flat(value, f"{path}: heads.{head}.{name}")


def _flat(value: Any, where: str) -> Any:
    """Return a value that is no table or list of others."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if any(isinstance(part, dict | list) for part in parts):
        raise UsageError(where, "is nested too deeply", "write a value, a list of values, or a table of values")
    return value


def _joined(value: Any) -> Any:
    """Return a value as text for click, which knows the type."""
    if isinstance(value, Mapping):
        return ",".join(f"{wanted}={found}" for wanted, found in value.items())
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else value
