"""Shared parts of the commands: one-line errors, options made from settings, text for people."""

from __future__ import annotations

import ast
import logging
import os
import re
import shlex
import sys
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

from nlptasks.cli.configfile import added
from nlptasks.cli.options import limits_of, parse_option, to_text
from nlptasks.config import DEVICES, Target, default_of, parse_target, settings_of, types_of
from nlptasks.errors import DataError, DataErrors, NlptasksError, PluginError, UsageError, did_you_mean, quote
from nlptasks.exporting.precisions import PRECISIONS
from nlptasks.training.interrupts import terminable

_Function = TypeVar("_Function", bound=Callable[..., Any])

_ARGUMENT = re.compile(r"`(\w+)(?:=([^`]+))?`")
"""A Python argument in a message, with its value or without one."""

_COLORS = ("green", "cyan", "yellow", "magenta", "blue", "red")


class OutputPath(click.Path):
    """A folder to write. Its path must be valid UTF-8, because file formats and messages contain it."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            os.fspath(value).encode("utf-8")
        except UnicodeEncodeError:
            self.fail(f"{quote(value)} is not valid UTF-8; use another name", param, ctx)
        return super().convert(value, param, ctx)


output_option = click.option("-o", "--output", type=OutputPath(), required=True, help="the new model's folder")
overwrite_option = click.option("--overwrite", is_flag=True, help="replace the contents of the output folder")
device_option = click.option(
    "--device", type=click.Choice(DEVICES), default="auto", show_default=True, help="where to run"
)
backend_option = click.option(
    "--backend",
    default="auto",
    show_default=True,
    help="auto (ONNX Runtime if there is a fresh export), torch, torch:bf16, onnx, or onnx with a precision: "
    + ", ".join(f"onnx:{name}" for name in PRECISIONS),
)
set_option = click.option(
    "--set",
    "options",
    multiple=True,
    callback=added,
    metavar="HEAD.OPTION=VALUE",
    help="set an option of a head; see 'nlptasks tasks TASK'",
)
columns_option = click.option(
    "--columns",
    metavar="FIELD=COLUMN,...",
    callback=added,
    default="",
    help="columns of the file for the head's fields, e.g. text=review,label=stars; for one head: HEAD.text=review",
)


class Command(click.Command):
    """A command that reports each error of the library in one line and exits with its code; ``--debug`` shows the traceback."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(
            click.Option(["--debug"], is_flag=True, help="show the traceback of an error", expose_value=False)
        )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["debug"] = "--debug" in args
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        prepare_process(self)
        try:
            with terminable():
                return super().invoke(ctx)
        except NlptasksError as error:
            if ctx.meta["debug"]:
                raise
            _report(_as_options(error, self), is_foreign=isinstance(error, PluginError) and error.__cause__ is not None)
            if isinstance(error, DataErrors) and error.stopped:
                click.echo(f"stopped after {len(error.errors)} errors", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            if ctx.meta["debug"]:
                raise
            click.echo("interrupted", err=True)
            ctx.exit(130)
        except BrokenPipeError:  # the program that reads our output has ended, such as `head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(0)
        except (click.exceptions.Exit, click.ClickException, click.Abort):  # click's own exits and messages
            raise
        except Exception as error:
            from nlptasks.registry import blamed

            plugin = None if ctx.meta["debug"] else blamed(error)
            if plugin is None:
                raise
            _report(plugin, is_foreign=True)
            ctx.exit(plugin.exit_code)


def _report(error: NlptasksError, *, is_foreign: bool) -> None:
    """Print an error to stderr, a line per problem. That of foreign code has a traceback worth seeing."""
    for line in error.lines():
        click.echo(f"error: {printable(line)}{'; --debug shows the traceback' if is_foreign else ''}", err=True)


def _as_options(error: NlptasksError, command: click.Command) -> NlptasksError:
    """Return an error that names options of the command instead of Python arguments."""
    if isinstance(error, DataErrors):
        return DataErrors([DataError(one.where, one.problem, as_options(one.fix, command)) for one in error.errors])
    where = error.where
    if error.argument in (known := _options(command)):
        where = _flag(known[error.argument]) + where.removeprefix(error.argument)
    return type(error)(where, as_options(error.problem, command), as_options(error.fix, command))


def as_options(text: str, command: click.Command) -> str:
    """Return a message with the command's options for the Python arguments in backticks.

    For example, `overwrite=True` becomes --overwrite, and `columns={"text": "NAME"}` becomes --columns text=NAME.
    """
    known = _options(command)

    def shown(found: re.Match[str]) -> str:
        with suppress(ValueError, SyntaxError):  # it is data in backticks
            if found[1] in known:
                return _option(known[found[1]], found[2])
        return found[0]

    return _ARGUMENT.sub(shown, text)


def _options(command: click.Command) -> dict[str, click.Option]:
    return {item.name: item for item in command.params if isinstance(item, click.Option) and item.name}


def _flag(option: click.Option) -> str:
    return max(option.opts, key=len)


def _option(option: click.Option, literal: str | None) -> str:
    """Return an option with its value, which is given as Python writes it."""
    flag, value = _flag(option), ast.literal_eval(literal) if literal else True
    if value is True:
        return flag
    if not isinstance(value, dict):
        return f"{flag} {shlex.quote(str(value))}"
    pairs = [f"{name}={to_text(part)}" for name, part in value.items()]
    return " ".join(f"{flag} HEAD.{pair}" for pair in pairs) if option.multiple else f"{flag} {','.join(pairs)}"


def prepare_process(command: click.Command) -> None:
    """Send the library's log messages to stderr, and silence progress bars and messages of other libraries."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logger = logging.getLogger("nlptasks")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_ForPeople(command))
    logger.handlers = [handler]
    first = os.environ.get("RANK", "0") == "0"  # of several processes that train together, only the first one logs
    logger.setLevel(logging.INFO if first else logging.ERROR)
    logger.propagate = False


def settings_options(cls: type) -> Callable[[_Function], _Function]:
    """Return a decorator that adds an option for each setting of a dataclass, with its type, default and meaning."""

    def decorate(function: _Function) -> _Function:
        for item in reversed(settings_of(cls)):
            choices: Sequence[str] = item.metadata["choices"]
            default, declared = default_of(item), types_of(cls, item)[0]
            help_text = item.metadata["doc"] + (f"  [default: {default}]" if default not in (None, {}) else "")
            kind = click.Choice(choices) if choices else declared if isinstance(declared, type) else click.UNPROCESSED
            flag = f"--{item.name.replace('_', '-')}"
            form = limits_of(cls, item) if kind is click.UNPROCESSED else None
            function = click.option(flag, item.name, type=kind, default=None, metavar=form, help=help_text)(function)
        return function

    return decorate


def given_settings(cls: type, options: Mapping[str, Any]) -> Any:
    """Return an instance of the dataclass with the options that were given."""
    names = [item.name for item in settings_of(cls) if options.get(item.name) is not None]
    return cls(**{name: parse_option(cls, name, options[name]) for name in names})


def parse_pairs(text: str, *, where: str) -> dict[str, str]:
    """Return ``a=b,c=d`` as a dict.

    Raises:
        UsageError: a part has another form.
    """
    pairs = {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not (name and equals and value):
            raise UsageError(where, f"has {part!r}, expected FIELD=COLUMN", "write for example text=review,label=stars")
        pairs[name] = value
    return pairs


def make_targets(texts: Iterable[str], *, columns: str) -> list[Target]:
    """Return the targets of a command line, with their columns.

    Args:
        texts: ``[NAME:]TASK[=DATA]`` of each target.
        columns: ``FIELD=COLUMN,...`` for every target, ``HEAD.FIELD=COLUMN`` for one.

    Raises:
        UsageError: an argument has another form, or names another head.
    """
    targets = [parse_target(text) for text in texts]
    names = [target.name for target in targets]
    renames: dict[str, dict[str, str]] = {name: {} for name in names}
    pairs = parse_pairs(columns, where="--columns")
    for wanted, found in sorted(
        pairs.items(), key=lambda pair: "." in pair[0]
    ):  # those of one head override the others
        head, dot, field = wanted.partition(".")
        if dot and head not in renames:
            raise UsageError(f"--columns {wanted}", f"names the head {head!r}", did_you_mean(head, names))
        for name in [head] if dot else names:
            renames[name][field if dot else wanted] = found
    return [replace(target, columns=renames[target.name]) for target in targets]


def printable(text: str) -> str:
    """Return text that cannot control a terminal: control characters are escaped."""
    return "".join(char if char == "\t" or not _is_control(char) else repr(char)[1:-1] for char in text)


class _ForPeople(logging.Formatter):
    """Shows options for Python arguments, and escapes control characters, since messages may quote the data."""

    def __init__(self, command: click.Command) -> None:
        super().__init__()
        self._command = command

    def format(self, record: logging.LogRecord) -> str:
        return printable(as_options(super().format(record), self._command))


def _is_control(char: str) -> bool:
    """Return True for control characters, lone surrogates, and marks that change the direction of text."""
    return (
        unicodedata.category(char) in ("Cc", "Cs") or char in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    )


def highlighted(pieces: Iterable[tuple[str, str]], *, color: bool) -> str:
    """Return pieces of text with their labels, in colour or as ``[text LABEL]``."""
    parts = []
    for text, label in pieces:
        if not label:
            parts.append(printable(text))
        elif color:
            shade = _COLORS[zlib.crc32(label.encode()) % len(_COLORS)]
            parts.append(
                click.style(printable(text), fg=shade, bold=True)
                + click.style(f" {printable(label)}", fg=shade, dim=True)
            )
        else:
            parts.append(f"[{printable(text)} {printable(label)}]")
    return "".join(parts)


def next_steps(folder: Path, row: Mapping[str, str]) -> str:
    """Return commands that use a new model, whose head reads such rows."""
    given = '"..."' if row.keys() == {"text"} else f"--input FILE.jsonl (rows with {', '.join(row)})"
    shown = printable(str(folder))
    return f"next:  nlptasks predict {shown} {given}    nlptasks export {shown}"


def metric_lines(metrics: Mapping[str, float], main: str) -> list[str]:
    """Return metrics for people: overall metrics first, then a line for each label."""
    rows: dict[str, list[str]] = {}
    for key, value in sorted(metrics.items(), key=lambda pair: pair[0].rpartition(".")[2] != main):
        label, _, name = key.rpartition(".")
        number = f"{value:.0f}" if name == "support" else f"{value:.4f}" if value <= 1 else f"{value:.2f}"
        rows.setdefault(label, []).append(f"{name} {number}")
    width = max(map(len, rows))
    return [f"  {printable(label):{width}}  {'  '.join(values)}" for label, values in rows.items()]
